//! What is on the wire: packet bytes, headers and checksums.

pub mod checksum;
pub mod ethernet;
pub mod headers;
pub mod icmp;
pub mod ip;
pub mod packet;
pub mod transport;
