//! The configuration file: what it may say, and what is wrong with one that says something else.

pub mod model;

pub use model::{BackendSpec, Config, Deployment, OnSwitch, Prefix, Service, mode_name, protocol_name};
