//! Messages in a stream, each with its length before it (RFC 1035 §4.2.2).

/// What arrived of a stream, taken apart into messages.
///
/// Octets are put in as they come, and whole messages taken out:
///
/// ```
/// let mut frames = pn_dns::framing::Frames::default();
/// frames.buffer().extend([0, 2, 7]);
/// assert_eq!(frames.next(), None);
/// frames.buffer().extend([8, 0, 0]);
/// assert_eq!(frames.next(), Some(&[7, 8][..]));
/// assert_eq!(frames.next(), Some(&[][..]), "an empty message is one, too");
/// assert_eq!(frames.next(), None);
/// assert!(frames.is_empty());
/// ```
#[derive(Debug, Default)]
pub struct Frames {
    octets: Vec<u8>,
    /// How much of them was taken out.
    taken: usize,
}

impl Frames {
    /// Returns where to put octets that arrived, behind those that are there.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        self.octets.drain(..self.taken);
        self.taken = 0;
        &mut self.octets
    }

    /// Takes the next message out, if it is whole.
    #[expect(clippy::should_implement_trait, reason = "what it returns borrows from it")]
    pub fn next(&mut self) -> Option<&[u8]> {
        let (len, rest) = self.octets.get(self.taken..)?.split_first_chunk()?;
        let message = rest.get(..usize::from(u16::from_be_bytes(*len)))?;
        self.taken += len.len() + message.len();
        Some(message)
    }

    /// Returns whether nothing is left, not even a part of a message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.taken == self.octets.len()
    }
}

/// Adds a message and its length to what is to be sent; `false` where it is too long for a message.
pub fn push(stream: &mut Vec<u8>, message: &[u8]) -> bool {
    let Ok(len) = u16::try_from(message.len()) else {
        return false;
    };
    stream.extend_from_slice(&len.to_be_bytes());
    stream.extend_from_slice(message);
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However a stream is cut, the same messages come out.
        #[test]
        fn cuts_do_not_matter(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
            cuts in proptest::collection::vec(1usize..200, 1..30),
        ) {
            let mut stream = Vec::new();
            messages.iter().for_each(|message| assert!(push(&mut stream, message)));
            let (mut frames, mut found, mut rest, mut cuts) = (Frames::default(), Vec::new(), &stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (part, tail) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                frames.buffer().extend(part);
                rest = tail;
                while let Some(message) = frames.next() {
                    found.push(message.to_vec());
                }
            }
            prop_assert_eq!(found, messages);
            prop_assert!(frames.is_empty());
        }
    }

    #[test]
    fn what_is_too_long_is_left_out() {
        let mut stream = Vec::new();
        assert!(push(&mut stream, &[0; 65535]) && !push(&mut stream, &[0; 65536]));
        assert_eq!(stream.len(), 65537);
    }
}
