//! Checks of the maps' sizes: how much memory they take, and whether a configuration fits into them.

use std::fs;

use bg_common::{Colour, Mode};

use super::Finding;
use crate::{
    config::{Config, Service},
    sizes::{Setting, Sizes},
};

/// The memory that the maps of an instance take, and what does not fit into them.
pub(super) fn of_instance(subject: &str, sizes: &Sizes, config: Option<&Config>) -> Vec<Finding> {
    let memory = Finding::ok(subject, "memory", format!("the maps take {sizes}"));
    let remedy = |setting: Setting, needed| {
        format!(
            "run `bgctl detach --all`, then attach with --{} {needed} or more (open flows are lost)",
            setting.name()
        )
    };
    std::iter::once(memory).chain(missing(subject, sizes, config, remedy)).collect()
}

/// The same for an instance that does not exist yet.
pub(super) fn of_new_instance(subject: &str, config: Option<&Config>) -> Vec<Finding> {
    let sizes = Sizes::default();
    let message = format!("the maps of a new instance take {sizes}");
    let memory = match available() {
        Some(available) if available < sizes.bytes() => Finding::warn(
            subject,
            "memory",
            format!("{message}, but only {:.1} MiB are available", available as f64 / f64::from(1 << 20)),
            "attach with smaller --flows, --services or --backends, or free some memory",
        ),
        _ => Finding::ok(subject, "memory", message),
    };
    let remedy = |setting: Setting, needed| format!("attach with --{} {needed} or more", setting.name());
    std::iter::once(memory).chain(missing(subject, &sizes, config, remedy)).collect()
}

/// The settings that are too small for a configuration.
fn missing(
    subject: &str,
    sizes: &Sizes,
    config: Option<&Config>,
    remedy: impl Fn(Setting, usize) -> String,
) -> Vec<Finding> {
    let services = || config.iter().flat_map(|config| &config.deployments).flat_map(|deployment| &deployment.services);
    // The listeners of a teed service have rows too.
    let listeners = |service: &&Service| service.mode == Mode::Tee;
    let listeners = Colour::ALL.len() * services().filter(listeners).count();
    let backends = listeners + services().flat_map(|service| &service.backends).map(Vec::len).sum::<usize>();
    let needed = [(Setting::Services, services().count()), (Setting::Backends, backends)];
    let missing = needed.into_iter().filter(|(setting, needed)| *needed > sizes.room(*setting) as usize);
    let finding = |(setting, needed): (Setting, usize)| {
        let (what, room) = (setting.name(), sizes.room(setting));
        let message = format!("the configuration has {needed} {what}, but there is room for {room}");
        Finding::fail(subject, "room", message, remedy(setting, needed))
    };
    missing.map(finding).collect()
}

/// Bytes of memory that are available.
fn available() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn config(services: u16) -> Config {
        let mut text = String::new();
        for port in 1..=services {
            text += &format!(
                "[[deployments.shop.services]]\nvip = \"203.0.113.10:{port}\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
                 blue = [\"10.0.0.1:{port}\"]\ngreen = [\"10.0.0.2:{port}\"]\n"
            );
        }
        crate::config::parse("x".as_ref(), &text).unwrap()
    }

    #[test]
    fn a_configuration_that_does_not_fit_is_told_with_the_option_that_makes_room() {
        let sizes = Sizes::new(1000, 3, 6);
        assert_eq!(of_instance("instance", &sizes, Some(&config(3))).len(), 1);
        let findings = of_instance("instance", &sizes, Some(&config(4)));
        let told: Vec<_> = findings.iter().map(|finding| (finding.check, finding.level)).collect();
        assert_eq!(told, [("memory", Level::Ok), ("room", Level::Fail), ("room", Level::Fail)]);
        assert!(findings[1].message.contains("4 services") && findings[1].message.contains("room for 3"));
        let remedies: Vec<_> = findings.into_iter().filter_map(|finding| finding.remedy).collect();
        assert!(remedies[0].contains("--services 4 ") && remedies[1].contains("--backends 8 "), "{remedies:?}");
    }

    #[test]
    fn the_memory_of_a_new_instance_is_told_beforehand() {
        assert!(available().unwrap() > 1 << 20);
        let findings = of_new_instance("host", Some(&config(2)));
        let [memory] = &findings[..] else { panic!("{findings:?}") };
        assert!(memory.message.contains("48.0 MiB for 262144 flows"), "{}", memory.message);
    }
}
