//! The pins of an instance: checking, creating and removing them.
//!
//! The order in which pins are created and removed shows what a killed command has left. `attach`
//! pins the maps, then writes `meta`, then pins programs, then links. `detach --all` removes links and
//! programs, then `meta`, then the other maps. So a valid `meta` means that all maps exist. Without a valid `meta`, working links
//! mean that somebody has damaged the instance. Without working links, nothing in the pin root is in use, and all of it can
//! be created anew.

mod files;
mod meta;
mod removal;
mod root;

pub(crate) use files::{entries, exists, make_directories, remove, unopened};
pub(crate) use meta::{check_namespace, check_own_namespace, is_in_this_namespace, read_meta};
pub(crate) use removal::{clear, remove_all};
pub(crate) use root::PinRoot;
