//! A batch of datagrams that wait to be sent.

use core::net::SocketAddr;
use core::ops::Range;

/// Datagrams in one buffer, one behind the other, each with where it goes.
///
/// Protocol code appends to it, a shell sends what is in it and clears it. Its memory is kept, so a batch allocates nothing
/// once the largest was seen.
#[derive(Debug, Default)]
pub struct Outbox {
    /// As much as was ever needed; what is written begins at 0.
    octets: Vec<u8>,
    used: usize,
    datagrams: Vec<(SocketAddr, Range<usize>)>,
}

/// Datagrams to one destination, one behind the other, that one system call may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run<'a> {
    /// Where they go.
    pub to: SocketAddr,
    /// All of them.
    pub octets: &'a [u8],
    /// How long each is; the last may be shorter.
    pub size: usize,
}

impl Outbox {
    /// Makes an empty batch.
    #[must_use]
    pub const fn new() -> Self {
        Self { octets: Vec::new(), used: 0, datagrams: Vec::new() }
    }

    /// Appends a datagram that `write` puts into a buffer of `capacity` octets, of which it returns how many it used. What is in
    /// the buffer before is anything. `None` appends nothing.
    pub fn append<E>(
        &mut self,
        to: SocketAddr,
        capacity: usize,
        write: impl FnOnce(&mut [u8]) -> Result<Option<usize>, E>,
    ) -> Result<(), E> {
        let start = self.used;
        if self.octets.len() < start + capacity {
            self.octets.resize(start + capacity, 0);
        }
        if let Some(used) = write(&mut self.octets[start..start + capacity])? {
            self.used = start + used.min(capacity);
            self.datagrams.push((to, start..self.used));
        }
        Ok(())
    }

    /// Returns the datagrams in the order they were appended.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (SocketAddr, &[u8])> {
        self.datagrams.iter().map(|(to, range)| (*to, &self.octets[range.clone()]))
    }

    /// Returns the datagrams in the order they were appended, as runs of at most so many datagrams and octets; a datagram that is
    /// longer than that is a run of its own.
    pub fn runs(&self, datagrams: usize, octets: usize) -> impl Iterator<Item = Run<'_>> + Clone {
        let mut rest = &self.datagrams[..];
        core::iter::from_fn(move || {
            let (to, first) = rest.first()?;
            let (size, mut end, mut count) = (first.len(), first.end, 1);
            while count < datagrams
                && let Some((next_to, next)) = rest.get(count)
                && next_to == to
                && (1..=size).contains(&next.len())
                && next.end - first.start <= octets
            {
                end = next.end;
                count += 1;
                if next.len() < size {
                    break;
                }
            }
            rest = &rest[count..];
            Some(Run { to: *to, octets: &self.octets[first.start..end], size })
        })
    }

    /// Returns how many datagrams wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// Returns how many octets wait.
    #[must_use]
    pub const fn octets(&self) -> usize {
        self.used
    }

    /// Returns whether none waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Forgets every datagram and keeps the memory.
    pub fn clear(&mut self) {
        self.used = 0;
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

    #[test]
    fn runs_are_datagrams_of_one_size_to_one_place() {
        let (mut outbox, a, b) = (Outbox::new(), "192.0.2.1:1".parse().unwrap(), "192.0.2.2:1".parse().unwrap());
        for (to, len) in [(a, 3), (a, 3), (a, 2), (a, 3), (a, 4), (b, 4), (b, 0), (b, 0), (b, 4), (b, 4), (b, 4)] {
            outbox.append(to, 10, |_| Ok::<_, ()>(Some(len))).unwrap();
        }
        let runs: Vec<_> = outbox.runs(64, 10).map(|run| (run.to, run.octets.len(), run.size)).collect();
        assert_eq!(runs, [(a, 8, 3), (a, 3, 3), (a, 4, 4), (b, 4, 4), (b, 0, 0), (b, 0, 0), (b, 8, 4), (b, 4, 4)]);
        assert_eq!(outbox.runs(2, 1000).next().unwrap().octets.len(), 6);
        assert_eq!(outbox.octets(), 31);
    }
}
