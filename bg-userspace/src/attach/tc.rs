//! Attaching to tc: by TCX links if the kernel has them, else by filters of the clsact qdisc.

use aya::{
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::FdLink,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
    util::KernelVersion,
};

use super::{hook::Hook, mode::AttachedMode, owner::is_of_instance};
use crate::{
    Error, Paths,
    net::{self, Filter, Interface},
    pins,
};

/// The priority of bgctl's filters of clsact. It is fixed, so that a repeated attach finds them.
pub(super) const PRIORITY: u16 = 0xb6;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Whether a filter of clsact has the priority of bgctl's.
pub(super) fn is_our_place(filter: &Filter) -> bool {
    filter.priority == PRIORITY && filter.handle == 1
}

/// Whether bgctl's filter exists and runs this program.
pub(super) fn carries(ifindex: u32, hook: Hook, program_id: u32) -> bool {
    let filters = net::filters(ifindex, hook.is_same_place(Hook::TcEgress));
    filters.iter().any(|filter| is_our_place(filter) && filter.program_id == Some(program_id))
}

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Attaches `program` behind the programs of others, and pins the link.
pub(super) fn attach(
    paths: &Paths,
    program: &mut SchedClassifier,
    interface: &Interface,
    hook: Hook,
) -> Result<(), Error> {
    let has_tcx = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0));
    if has_tcx {
        attach_tcx(paths, program, interface, hook)
    } else {
        check_place(paths, interface, hook)?;
        attach_clsact(paths, program, &interface.name, hook.clsact())
    }
}

/// Checks that the priority of bgctl's filters is free, or was taken by a killed attach of this instance.
fn check_place(paths: &Paths, interface: &Interface, hook: Hook) -> Result<(), Error> {
    let filters = net::filters(interface.index, hook.is_same_place(Hook::TcEgress));
    match filters.iter().find(|filter| is_our_place(filter)).and_then(|filter| filter.program_id) {
        Some(id) if !is_of_instance(paths, id) => Err(Error::Attach {
            interface: interface.name.clone(),
            mode: AttachedMode::Tc.name(),
            hint: "; before Linux 6.6, only one instance can be attached to an interface in mode tc",
            source: format!("another program (id {id}) has the priority {PRIORITY} of clsact").into(),
        }),
        _ => Ok(()),
    }
}

fn attach_tcx(paths: &Paths, program: &mut SchedClassifier, interface: &Interface, hook: Hook) -> Result<(), Error> {
    let failed = failed(&interface.name);
    let pin = paths.links().join(hook.pin_name(&interface.name));
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id =
        program.attach_with_options(&interface.name, direction(hook), order).map_err(|error| failed(error.into()))?;
    let link: Result<FdLink, Source> =
        program.take_link(id).map_err(Into::into).and_then(|link| link.try_into().map_err(Into::into));
    let link = link.map_err(&failed)?;
    // A pin that is left there belongs to an interface of this name that is gone.
    pins::remove(&pin)?;
    link.pin(&pin).map_err(|error| failed(error.into()))?;
    Ok(())
}

/// Attaches `program` as bgctl's filter of the clsact qdisc, in place of an older one if there is one, and pins it.
pub(super) fn attach_clsact(
    paths: &Paths,
    program: &mut SchedClassifier,
    interface: &str,
    hook: Hook,
) -> Result<(), Error> {
    let failed = failed(interface);
    match tc::qdisc_add_clsact(interface) {
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(TcError::AlreadyAttached) => {}
        result => result.map_err(|error| failed(error.into()))?,
    }
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let id = match program.attach_with_options(interface, direction(hook), TcAttachOptions::Netlink(options)) {
        Ok(id) => id,
        // There is one already, which is replaced in place.
        Err(_) => {
            let old = place(interface, hook).map_err(|error| failed(error.into()))?;
            program.attach_to_link(old).map_err(|error| failed(error.into()))?
        }
    };
    let link = program.take_link(id).map_err(|error| failed(error.into()))?;
    // Dropping it would remove the filter.
    std::mem::forget(link);

    let pin = paths.links().join(hook.pin_name(interface));
    let temporary = paths.links().join(format!("{}:new", hook.pin_name(interface)));
    pins::remove(&temporary)?;
    program.pin(&temporary).map_err(|error| failed(error.into()))?;
    std::fs::rename(&temporary, &pin).map_err(Error::io("replace", pin))
}

/// Removes bgctl's filter. It is no error if there is none.
pub(super) fn detach_clsact(interface: &str, hook: Hook) -> Result<(), Error> {
    let link = place(interface, hook).map_err(|error| failed(interface)(error.into()))?;
    // Dropping it removes the filter.
    drop(link);
    Ok(())
}

fn place(interface: &str, hook: Hook) -> std::io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, direction(hook), PRIORITY, HANDLE, None)
}

fn direction(hook: Hook) -> TcAttachType {
    match hook {
        Hook::TcEgress | Hook::ClsactEgress => TcAttachType::Egress,
        _ => TcAttachType::Ingress,
    }
}

fn failed(interface: &str) -> impl Fn(Source) -> Error + use<> {
    let interface = interface.to_owned();
    move |source| Error::Attach {
        interface: interface.clone(),
        mode: AttachedMode::Tc.name(),
        hint: "; see `bgctl doctor`",
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::{
        Target,
        attach::{detach, pinned_links},
        loader::{Loaded, TC_INGRESS, WantedSizes},
    };

    fn run(program: &str, words: &str) -> String {
        let output = Command::new(program).args(words.split(' ')).output().expect("iproute2 is installed");
        assert!(output.status.success(), "{program} {words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Kernels before 6.6 have no TCX; what they do instead works on later ones too.
    #[test]
    fn a_clsact_filter_is_attached_replaced_and_taken_off() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: this test loads BPF programs, run it as root");
            return;
        }
        // SAFETY: the namespace of this thread alone changes; nothing of it is shared by memory.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        run("ip", "link add v0.1 type veth peer name v1");
        let directory = tempfile::tempdir().unwrap();
        let pin_root = format!("/sys/fs/bpf/bgctl-test-clsact-{}", std::process::id()).into();
        let paths = Paths { pin_root, state_dir: directory.path().to_owned() };
        let mut loaded = Loaded::load(&paths, &WantedSizes { flows: Some(1000), ..WantedSizes::default() }).unwrap();
        let filters = || run("tc", "filter show dev v0.1 ingress").matches("direct-action").count();

        let program = loaded.classifier(TC_INGRESS).unwrap();
        attach_clsact(&paths, program, "v0.1", Hook::ClsactIngress).unwrap();
        attach_clsact(&paths, program, "v0.1", Hook::ClsactIngress).unwrap();
        assert_eq!(filters(), 1, "the second took the first one's place");
        let links = pinned_links(&paths).unwrap();
        assert!(links.len() == 1 && links[0].works() && links[0].hook == Hook::ClsactIngress);
        links[0].update(&mut loaded, &paths).unwrap();
        run("tc", "filter del dev v0.1 ingress");
        assert!(!pinned_links(&paths).unwrap()[0].works(), "somebody else has taken it off");
        attach_clsact(&paths, loaded.classifier(TC_INGRESS).unwrap(), "v0.1", Hook::ClsactIngress).unwrap();
        drop(loaded);
        assert_eq!(filters(), 1, "it outlives its loader");

        let interface = net::interface("v0.1").unwrap();
        check_place(&paths, &interface, Hook::ClsactIngress).expect("it is this instance's");
        let other = Paths { pin_root: paths.pin_root.join("other"), ..paths.clone() };
        let error = check_place(&other, &interface, Hook::ClsactIngress).unwrap_err().to_string();
        assert!(error.contains("v0.1") && error.contains("before Linux 6.6"), "{error}");

        detach(&paths, &Target::All).unwrap();
        assert_eq!(filters(), 0);
        assert!(!paths.pin_root.exists());
    }
}
