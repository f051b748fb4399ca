//! What the pins in the directory of links hold.

use std::path::Path;

use aya::programs::ProgramInfo;

use super::hook::Hook;
use crate::{
    Error, Paths, pins,
    sys::{LinkInfo, link_info},
};

/// The object that a pin holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Held {
    Link(LinkInfo),
    /// The id of a program. clsact has no links, so the program is pinned.
    Program(u32),
}

/// The object that a pin holds; `None` if a detach has just removed the pin.
pub(super) fn held(pin: &Path, hook: Hook) -> Result<Option<Held>, Error> {
    let held = if hook.is_clsact() {
        let program = ProgramInfo::from_pin(pin).map_err(Error::program("open", hook.mode_name()));
        program.map(|program| Held::Program(program.id()))
    } else {
        link_info(pin).map(Held::Link).map_err(Error::io("read link", pin))
    };
    match held {
        Err(_) if !pins::exists(pin)? => Ok(None),
        held => held.map(Some),
    }
}

/// Whether any interface carries an instance's programs. Reads less than [`attached_interfaces`](super::attached_interfaces).
pub(crate) fn is_attached(paths: &Paths) -> Result<bool, Error> {
    for pin in pins::entries(&paths.links())? {
        let name = pin.file_name().and_then(|name| name.to_str());
        let Some((_, hook)) = name.and_then(Hook::parse) else { continue };
        match held(&pin, hook)? {
            Some(Held::Program(_)) => return Ok(true),
            Some(Held::Link(link)) if link.ifindex != 0 => return Ok(true),
            _ => {}
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::{super::mode::AttachedMode, *};

    #[test]
    fn a_pin_that_a_detach_has_just_removed_is_passed_over() {
        let pin = Path::new("/sys/fs/bpf/bgctl-test-no-such-pin");
        for hook in [Hook::Xdp(AttachedMode::Native), Hook::TcIngress, Hook::ClsactEgress] {
            assert!(held(pin, hook).unwrap().is_none(), "{hook:?}");
        }
    }
}
