//! The plan of attaching to one interface.

use super::{
    mode::{AttachMode, AttachedMode},
    other_program::OtherProgram,
    others::others,
    pinned::{PinnedLink, mode_of},
};
use crate::{Error, Paths, Refusal, net::Interface};

/// The plan for one interface.
pub(super) struct Plan {
    pub(super) mode: AttachedMode,
    /// Whether to use tc if the driver does not support XDP after all.
    pub(super) or_tc: bool,
}

/// Chooses the mode of an interface. Refuses to attach if it would have no effect or would harm a program of others.
pub(super) fn plan(
    paths: &Paths,
    interface: &Interface,
    mode: AttachMode,
    force: bool,
    ours: &[PinnedLink],
) -> Result<Plan, Error> {
    if ours.iter().any(|link| link.stands_in_the_way_of(interface)) {
        return Err(Error::NameTaken { interface: interface.name.clone() });
    }
    let current = mode_of(ours.iter().filter(|link| link.is_on(interface)));
    let (mode, or_tc) = match mode {
        AttachMode::Native => (AttachedMode::Native, false),
        AttachMode::Generic => (AttachedMode::Generic, false),
        AttachMode::Tc => (AttachedMode::Tc, false),
        AttachMode::Auto => match current {
            Some(current) => (current, false),
            None if interface.is_virtual() => (AttachedMode::Tc, false),
            None => (AttachedMode::Native, true),
        },
    };
    match (current, mode) {
        // The kernel does not allow native and generic XDP at once. XDP and tc may both be attached for a moment.
        (Some(got @ (AttachedMode::Native | AttachedMode::Generic)), AttachedMode::Native | AttachedMode::Generic)
            if got != mode =>
        {
            return Err(Error::ModeChange {
                interface: interface.name.clone(),
                expected: mode.name(),
                got: got.name(),
            });
        }
        _ => {}
    }
    let others = others(paths, interface, ours)?;
    if current.is_none()
        && !force
        && let Some(other) = others.iter().find(|other| other.bgctl)
    {
        let removal = other.removal(&interface.name);
        let interface = interface.name.clone();
        return Err(Refusal::OtherInstance { interface, program: other.to_string(), removal }.into());
    }
    if mode != AttachedMode::Tc
        && let Some(other) = others.into_iter().find(OtherProgram::is_xdp)
    {
        let removal = other.removal(&interface.name);
        return Err(Error::OtherXdpProgram { interface: interface.name.clone(), program: other, removal });
    }
    Ok(Plan { mode, or_tc })
}
