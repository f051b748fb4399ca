//! Completions beyond the grammar: the names of what runs or is configured here.
//!
//! The shell calls bgctl with the present line after a `--`. bgctl then changes nothing and prints only
//! candidates. What it cannot read, for example because of missing privileges, is not offered.

use std::{ffi::OsString, path::Path};

use bg_userspace::{
    Colour, Instance, Paths,
    config::{self, Config},
    net,
};
use clap_complete::{CompleteEnv, CompletionCandidate, env::Shells};

use crate::{args::USUAL_CONFIG, help, output};

/// The variable with which the shell's script requests candidates, by clap's convention.
const VARIABLE: &str = "COMPLETE";

/// Answers a request from a shell, and does not return then. Other software may use the same variable, so a line only counts as
/// a request if it has no words, or `--` is the first.
pub(crate) fn answer() {
    let is_question = std::env::args_os().nth(1).is_none_or(|word| word == "--");
    if is_question {
        CompleteEnv::with_factory(help::grammar).var(VARIABLE).bin("bgctl").completer("bgctl").complete();
    }
}

/// Prints the script for a shell.
pub(crate) fn print_script(shell: clap_complete::Shell) -> anyhow::Result<()> {
    let name = shell.to_string();
    let shells = Shells::builtins();
    let completer = shells.completer(&name).ok_or_else(|| anyhow::anyhow!("no completions for {name}"))?;
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, "bgctl", "bgctl", "bgctl", &mut script)?;
    output::print(&String::from_utf8(script)?)?;
    Ok(())
}

/// The running deployments, with their live colours. Without an instance, those of the configuration.
pub(crate) fn deployments() -> Vec<CompletionCandidate> {
    let Some(config) = running_config().or_else(written_config) else { return Vec::new() };
    let candidate = |deployment: config::Deployment| {
        let live = format!("{} is live", deployment.initial.name());
        CompletionCandidate::new(deployment.name).help(Some(live.into()))
    };
    config.deployments.into_iter().map(candidate).collect()
}

/// The services of all deployments.
pub(crate) fn services() -> Vec<CompletionCandidate> {
    let Some(config) = running_config().or_else(written_config) else { return Vec::new() };
    let candidate =
        |service: config::Service| CompletionCandidate::new(service.name).help(Some(service.vip.to_string().into()));
    config.deployments.into_iter().flat_map(|deployment| deployment.services).map(candidate).collect()
}

/// The backends of all services.
pub(crate) fn backends() -> Vec<CompletionCandidate> {
    let Some(config) = running_config().or_else(written_config) else { return Vec::new() };
    let mut candidates = Vec::new();
    for service in config.deployments.iter().flat_map(|deployment| &deployment.services) {
        for colour in Colour::ALL {
            let help = format!("{} of {}", colour.name(), service.name);
            candidates.extend(
                service.backends(colour).iter().map(|backend| {
                    CompletionCandidate::new(backend.address.to_string()).help(Some(help.clone().into()))
                }),
            );
        }
    }
    candidates
}

/// The interfaces of this network namespace.
pub(crate) fn interfaces() -> Vec<CompletionCandidate> {
    let interfaces = net::interfaces().unwrap_or_default();
    interfaces.into_iter().map(|interface| CompletionCandidate::new(interface.name)).collect()
}

/// The attached interfaces, with their modes. If they cannot be read, all interfaces.
pub(crate) fn attached_interfaces() -> Vec<CompletionCandidate> {
    let status = Instance::open(&paths()).and_then(|instance| instance.status(None));
    let Ok(status) = status else { return interfaces() };
    let candidate = |interface: bg_userspace::AttachedInterface| {
        CompletionCandidate::new(interface.name).help(Some(interface.mode.name().into()))
    };
    status.interfaces.into_iter().map(candidate).collect()
}

fn running_config() -> Option<Config> {
    Instance::open(&paths()).ok()?.configuration_without_gates().ok()
}

fn written_config() -> Option<Config> {
    config::load(Path::new(USUAL_CONFIG)).ok()
}

/// The paths of the instance that the line concerns.
fn paths() -> Paths {
    let place = |option_name: &str, variable: &str, usual: &str| {
        option(option_name).or_else(|| std::env::var_os(variable)).unwrap_or_else(|| usual.into()).into()
    };
    Paths {
        pin_root: place("--pin-root", "BGCTL_PIN_ROOT", Paths::PIN_ROOT),
        state_dir: place("--state-dir", "BGCTL_STATE_DIR", Paths::STATE_DIR),
    }
}

/// The value of an option on the line that is being completed.
fn option(name: &str) -> Option<OsString> {
    value_of(name, std::env::args_os().skip_while(|word| word != "--").skip(1))
}

fn value_of(name: &str, words: impl IntoIterator<Item = OsString>) -> Option<OsString> {
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        if word == name {
            return words.next();
        }
        let text = word.to_string_lossy();
        if let Some(value) = text.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
            return Some(value.into());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_of_the_line_is_found_in_either_spelling() {
        let value = |line: &str| value_of("--pin-root", line.split(' ').map(OsString::from));
        assert_eq!(value("bgctl --pin-root /a switch"), Some("/a".into()));
        assert_eq!(value("bgctl switch --pin-root=/a"), Some("/a".into()));
        assert_eq!(value("bgctl switch --pin-root"), None);
        assert_eq!(value("bgctl switch --pin-roots=/a"), None);
    }
}
