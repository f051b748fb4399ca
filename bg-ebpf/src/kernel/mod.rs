//! The engine's world in the kernel: BPF maps and helpers, and the programs that bring frames to it.

mod flows;
mod maps;
mod skb;
mod slow;
mod tc;
mod world;
mod xdp;
