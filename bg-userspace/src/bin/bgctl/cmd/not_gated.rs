//! `bgctl switch` in a program without the feature `serve`, which cannot ask gates.

use bg_userspace::{Error, FreezeWindow, Instance, SwitchRequest, Switched, WindowSwitched, config::Gate};

pub(super) use super::switch::render;

pub(super) fn switch(
    instance: &Instance,
    deployment: &str,
    request: &SwitchRequest,
    gates: &[Gate],
) -> Result<Switched, Error> {
    refuse(gates)?;
    instance.switch(deployment, request)
}

pub(super) fn switch_in_window(
    instance: &Instance,
    deployment: &str,
    request: &SwitchRequest,
    window: &FreezeWindow,
    gates: &[Gate],
) -> Result<WindowSwitched, Error> {
    refuse(gates)?;
    instance.switch_in_window(deployment, request, window)
}

/// Gates that nobody asks must not pass.
fn refuse(gates: &[Gate]) -> Result<(), Error> {
    if gates.is_empty() {
        return Ok(());
    }
    Err(Error::GatesNotBuilt)
}
