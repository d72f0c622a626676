//! What became of a query.

use core::fmt;

/// RCODE (RFC 6895 §2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rcode {
    /// There is an answer, if only that there is none of this type.
    NoError = 0,
    /// The query cannot be read.
    FormErr = 1,
    /// What is asked for is not known at the moment.
    ServFail = 2,
    /// There is no such name.
    NxDomain = 3,
    /// It asks for an operation that is not implemented.
    NotImp = 4,
    /// It asks for what is none of this server's business.
    Refused = 5,
    /// It speaks a version of EDNS that is not known here. The high bits of the code stand in the OPT record.
    BadVers = 16,
}

impl Rcode {
    /// Every code that is sent.
    pub const ALL: [Self; 7] =
        [Self::NoError, Self::FormErr, Self::ServFail, Self::NxDomain, Self::NotImp, Self::Refused, Self::BadVers];
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::NotImp => "NOTIMP",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        })
    }
}
