//! What the kernel's VXLAN hands over, up to 64 kB in one frame: cut, put together, and cut again to as much.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &[u8]| {
    let (cut, again) = pn_backend_linux::there_and_back(frame);
    let octets = |packets: &[Vec<u8>]| packets.iter().map(Vec::len).sum::<usize>();
    assert!(again.len() <= cut.len() && octets(&again) <= octets(&cut), "nothing is made up");
});
