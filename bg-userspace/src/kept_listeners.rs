//! The listeners that applies have chosen for services in mode `tee`, for the applies after a reboot.
//!
//! The first apply after a reboot runs before this host has its addresses, so it cannot choose. It takes what an earlier one has chosen, which is kept in the
//! state directory.

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use bg_common::Mode;

use crate::{
    Error, Paths,
    config::{Config, Service},
    history::{LISTENERS, PATIENCE, ask, make_private},
};

/// Listeners by the service's VIP, blue's first.
pub(crate) type Listeners = BTreeMap<SocketAddr, [SocketAddr; 2]>;

/// The names of services (and of their deployments) whose listeners neither the configuration names nor an apply has chosen yet. An apply at boot,
/// before the network is there, cannot choose them, and fails as a whole. Without the right to read the state directory, none are named.
pub fn needs_network_at_boot(paths: &Paths, config: &Config) -> Vec<(String, String)> {
    let deployments = || config.deployments.iter();
    let without = || {
        deployments().flat_map(|deployment| {
            let services = deployment.services.iter().filter(|service| is_without_listeners(service));
            services.map(|service| (&deployment.name, service))
        })
    };
    if without().next().is_none() {
        return Vec::new();
    }
    // To whom the directory is closed, it does not say what there is.
    let Some(kept) = known(&paths.state_dir) else { return Vec::new() };
    let missing = without().filter(|(_, service)| !kept.contains_key(&service.vip));
    missing.map(|(deployment, service)| (deployment.clone(), service.name.clone())).collect()
}

/// What is kept, or `None` if this process may not read it.
fn known(home: &Path) -> Option<Listeners> {
    let path = home.join(LISTENERS);
    let read = || match read(&path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(None),
        read => Ok(Some(read.unwrap_or_default())),
    };
    ask(home, PATIENCE, None, read).ok().flatten()
}

/// Whether it is in mode `tee`, and its configuration names no listeners.
pub(crate) fn is_without_listeners(service: &Service) -> bool {
    service.mode == Mode::Tee && service.tee.listen.is_none()
}

/// What is kept in the directory `home`. If it cannot be read, nothing is: then listeners are chosen.
pub(crate) fn recall(home: &Path) -> Listeners {
    let path = home.join(LISTENERS);
    ask(home, PATIENCE, None, || read(&path).map_err(Error::io("read", &path))).unwrap_or_default()
}

/// Keeps the listeners that were chosen, in the directory `home`, and no others.
pub(crate) fn keep(home: &Path, chosen: &Listeners) -> Result<(), Error> {
    let path = home.join(LISTENERS);
    ask(home, PATIENCE, None, || write(&path, chosen).map_err(Error::io("write", &path)))
}

fn read(path: &Path) -> io::Result<Listeners> {
    match fs::read(path) {
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Listeners::new()),
        Err(error) => Err(error),
    }
}

/// Whoever reads meanwhile, or after a loss of power, sees the old content or the new one.
fn write(path: &Path, chosen: &Listeners) -> io::Result<()> {
    if read(path).is_ok_and(|there| there == *chosen) {
        return Ok(());
    }
    path.parent().map_or(Ok(()), make_private)?;
    let temporary: PathBuf = path.with_extension("new");
    fs::write(&temporary, serde_json::to_vec_pretty(chosen)?)?;
    fs::File::open(&temporary)?.sync_all()?;
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_chosen_is_kept_and_what_is_broken_is_chosen_again() {
        let home = tempfile::tempdir().unwrap();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let chosen = Listeners::from([
            (at("203.0.113.10:80"), [at("10.0.0.1:17000"), at("10.0.0.1:17001")]),
            (at("[2001:db8::10]:80"), [at("[fd00::1]:17000"), at("[fd00::1]:17001")]),
        ]);
        assert_eq!(recall(home.path()), Listeners::new());
        keep(home.path(), &chosen).unwrap();
        keep(home.path(), &chosen).unwrap();
        assert_eq!(recall(home.path()), chosen);
        fs::write(home.path().join(LISTENERS), "{").unwrap();
        assert_eq!(recall(home.path()), Listeners::new());
        keep(home.path(), &chosen).unwrap();
        assert_eq!(recall(home.path()), chosen);
    }

    #[test]
    fn a_service_needs_the_network_at_boot_unless_its_listeners_are_named_or_kept() {
        let home = tempfile::tempdir().unwrap();
        let service = |vip: &str, more: &str| {
            format!(
                "[[deployments.shop.services]]\nname = \"s{vip}\"\nvip = \"203.0.113.10:{vip}\"\nprotocol = \"tcp\"\n\
                 {more}\nblue = [\"127.0.0.1:1\"]\ngreen = [\"127.0.0.1:2\"]\n"
            )
        };
        let text = service("1", "mode = \"nat\"")
            + &service("2", "mode = \"tee\"")
            + &service("3", "mode = \"tee\"")
            + &service("4", "mode = \"tee\"\nlisten = { blue = \"10.0.0.1:17000\", green = \"10.0.0.1:17001\" }");
        let config = crate::config::parse("test".as_ref(), &text).unwrap();
        let paths = Paths { state_dir: home.path().to_owned(), ..Paths::default() };
        let names = || needs_network_at_boot(&paths, &config).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        assert_eq!(names(), ["s2", "s3"]);
        let listeners = ["10.0.0.1:17002", "10.0.0.1:17003"].map(|text| text.parse().unwrap());
        keep(home.path(), &Listeners::from([(config.deployments[0].services[1].vip, listeners)])).unwrap();
        assert_eq!(names(), ["s3"]);
    }
}
