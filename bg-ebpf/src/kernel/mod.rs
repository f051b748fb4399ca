//! The engine's world in the kernel: BPF maps and helpers, and the programs that bring frames to it.

mod aside;
mod flows;
mod maps;
mod skb;
mod tc;
mod world;
mod xdp;
