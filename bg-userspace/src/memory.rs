//! The memory that the maps of an instance take.

use std::fmt;

use crate::{
    map_specs::MAPS,
    sizes::{Setting, Sizes},
};

impl Sizes {
    /// The bytes of memory that all maps take, as the kernel counts them.
    pub(crate) fn bytes(&self) -> u64 {
        MAPS.iter().map(|map| map.bytes(self)).sum()
    }

    /// The bytes of memory that a setting takes. Reducing it to nothing would save about as much.
    fn bytes_for(&self, setting: Setting) -> u64 {
        self.bytes().saturating_sub(self.with(setting, 0).bytes())
    }
}

/// The memory that the settings take, as in "57.1 MiB: 48.0 MiB for 262144 flows ...".
impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        write!(f, "{}:", mib(self.bytes()))?;
        for setting in Setting::ALL {
            write!(f, " {} for {} {},", mib(self.bytes_for(setting)), self.room(setting), setting.name())?;
        }
        let rest =
            Setting::ALL.iter().fold(self.bytes(), |rest, setting| rest.saturating_sub(self.bytes_for(*setting)));
        write!(f, " {} for the rest", mib(rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_of_defaults_takes_less_than_a_hundred_megabytes() {
        let sizes = Sizes::default();
        assert!(sizes.bytes() < 100_000_000, "{sizes}");
        let text = sizes.to_string();
        assert!(text.contains("48.0 MiB for 262144 flows, "), "{text}");
    }

    #[test]
    fn what_a_setting_takes_grows_with_it() {
        let sizes = |flows, services, backends| Sizes::new(flows, services, backends);
        let bytes = |sizes: Sizes| Setting::ALL.map(|setting| sizes.bytes_for(setting));
        let [before, after] = [bytes(sizes(1 << 16, 100, 1000)), bytes(sizes(1 << 18, 400, 4000))];
        for (before, after) in before.into_iter().zip(after) {
            assert!(before > 0 && after > 3 * before && after < 5 * before, "{before} {after}");
        }
    }
}
