//! A batch of datagrams that wait to be sent.

use core::net::SocketAddr;
use core::ops::Range;

/// Datagrams in one buffer, each with where it goes.
///
/// Protocol code appends to it, a shell sends what is in it and clears it. Its memory is kept, so a batch allocates nothing
/// once the largest was seen.
#[derive(Debug, Default)]
pub struct Outbox {
    octets: Vec<u8>,
    datagrams: Vec<(SocketAddr, Range<usize>)>,
}

impl Outbox {
    /// Makes an empty batch.
    #[must_use]
    pub const fn new() -> Self {
        Self { octets: Vec::new(), datagrams: Vec::new() }
    }

    /// Appends a datagram that `write` puts into a buffer of `capacity` octets, of which it returns how many it used.
    /// `None` appends nothing.
    pub fn append<E>(
        &mut self,
        to: SocketAddr,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> Result<Option<usize>, E>,
    ) -> Result<(), E> {
        let start = self.octets.len();
        self.octets.resize(start + capacity, 0);
        let written = write(&mut self.octets[start..]);
        let used = written.as_ref().ok().copied().flatten();
        self.octets.truncate(start + used.unwrap_or(0).min(capacity));
        if used.is_some() {
            self.datagrams.push((to, start..self.octets.len()));
        }
        written.map(drop)
    }

    /// Returns the datagrams in the order they were appended.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (SocketAddr, &[u8])> {
        self.datagrams.iter().map(|(to, range)| (*to, &self.octets[range.clone()]))
    }

    /// Returns how many datagrams wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// Returns whether none waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Forgets every datagram and keeps the memory.
    pub fn clear(&mut self) {
        self.octets.clear();
        self.datagrams.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_appended_comes_out() {
        let (mut outbox, to) = (Outbox::new(), "192.0.2.1:1".parse().unwrap());
        let mut append = |text: &[u8], result: Result<Option<usize>, ()>| {
            outbox.append(to, 8, |buffer| {
                buffer[..text.len()].copy_from_slice(text);
                result
            })
        };
        assert_eq!(append(b"one", Ok(Some(3))), Ok(()));
        assert_eq!(append(b"nothing", Ok(None)), Ok(()));
        assert_eq!(append(b"failed", Err(())), Err(()));
        assert_eq!(append(b"two", Ok(Some(3))), Ok(()));
        assert_eq!(outbox.iter().collect::<Vec<_>>(), [(to, &b"one"[..]), (to, b"two")]);
        outbox.clear();
        assert!(outbox.is_empty());
    }
}
