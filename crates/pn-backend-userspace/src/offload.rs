//! Large packets: cut where they enter a tunnel, put together where they leave it.
//!
//! A kernel hands over and takes up to 64 kB of one flow as one packet, with one set of headers and a word on how to cut it
//! ([`VirtioHeader`]). [`Segments`] cuts such a packet in place; [`Coalescer`] undoes it at the other end, and merges nothing
//! that the kernel's own receive offload would not merge. Pure functions of octets, so that they can be tested against each
//! other.

mod checksum;
mod coalesce;
mod headers;
mod segment;
mod virtio;

pub use coalesce::{Coalescer, Merged};
pub use segment::{Segments, complete_checksum};
pub use virtio::{SegmentKind, Segmentation, VirtioHeader};

#[cfg(test)]
mod tests;
