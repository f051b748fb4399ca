//! The HTTP API of `bgctl serve`, asked by good clients and bad ones.

mod access;
mod changes;
mod crowd;
mod document;
mod encrypted;
mod events;
mod frozen;
mod hostile;
mod setup;
mod shared;
