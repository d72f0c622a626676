//! Large packets: cut where they enter a tunnel, put together where they leave it.
//!
//! Pure functions of octets, so that they can be tested against each other.

pub mod virtio;

pub use virtio::{SegmentKind, Segmentation, VirtioHeader};
