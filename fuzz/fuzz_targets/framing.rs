//! However a stream is cut, the same messages come out of it, and nothing is held that was taken out.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pn_dns::framing::{Frames, push};

fuzz_target!(|input: &[u8]| {
    let Some((cut, stream)) = input.split_first() else {
        return;
    };
    let whole = messages(&[stream]);
    let cuts: Vec<&[u8]> = stream.chunks(usize::from(*cut) + 1).collect();
    assert_eq!(messages(&cuts), whole);
    let mut again = Vec::new();
    assert!(whole.0.iter().all(|message| push(&mut again, message)));
    assert_eq!(again, stream[..stream.len() - whole.1]);
});

/// Returns the messages of a stream that comes in parts, and how many octets are left.
fn messages(parts: &[&[u8]]) -> (Vec<Vec<u8>>, usize) {
    let (mut frames, mut found) = (Frames::default(), Vec::new());
    for part in parts {
        frames.buffer().extend_from_slice(part);
        while let Some(message) = frames.next() {
            found.push(message.to_vec());
        }
    }
    let left = frames.buffer().len();
    assert_eq!(frames.is_empty(), left == 0);
    (found, left)
}
