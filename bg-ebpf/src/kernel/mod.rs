//! The engine's world in the kernel: BPF maps and helpers, and the programs that bring frames to it.

#[cfg(not(feature = "explain"))]
mod clock;
mod flows;
mod generations;
#[cfg(not(feature = "explain"))]
mod hold;
mod maps;
mod mirror;
mod routes;
mod skb;
mod slow;
#[cfg(feature = "explain")]
mod steps;
mod tc;
mod world;
mod xdp;
