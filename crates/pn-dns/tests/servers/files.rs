//! Files as programs of others read them.
