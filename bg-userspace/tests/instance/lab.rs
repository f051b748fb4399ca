//! An instance of its own in a network namespace of its own, for tests that need the kernel.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use bg_userspace::{
    AttachMode, AttachOptions, Attached, Colour, Error, Instance, Paths, Protocol, Target, attach,
    config::{BackendSpec, Config, Deployment, DivideBy, Encap, Failover, OnSwitch, Service, StickyPrefix, Tee},
    detach,
};

/// Pins, state directory and namespace of one test. The namespace belongs to the test's thread, so that the
/// library and the commands that it starts are in it; it goes with the thread.
pub(crate) struct Lab {
    pub(crate) paths: Paths,
    directory: tempfile::TempDir,
}

impl Lab {
    /// Fails without privileges: a test that cannot run has not passed.
    pub(crate) fn new() -> Self {
        let is_root = rustix::process::geteuid().is_root();
        assert!(is_root, "this test loads BPF programs: run it as root, as `cargo xtask test` does");
        // SAFETY: the namespace of this thread alone changes; nothing of it is shared by memory.
        let unshared = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) };
        unshared.expect("a network namespace for this thread");
        let lab = Self::directories();
        lab.ip("link add v0 type veth peer name v1");
        lab.ip("link set v0 up");
        lab.ip("link set v1 up");
        lab
    }

    /// Another instance in the same namespace.
    pub(crate) fn beside(&self) -> Self {
        Self::directories()
    }

    fn directories() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bgctl-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let directory = tempfile::tempdir().expect("a directory for state");
        let paths =
            Paths { pin_root: PathBuf::from("/sys/fs/bpf").join(name), state_dir: directory.path().join("state") };
        Self { paths, directory }
    }

    /// Runs ip(8) in the namespace.
    pub(crate) fn ip(&self, words: &str) {
        let output = Command::new("ip").args(words.split(' ')).output().expect("iproute2 is installed");
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs this build's bgctl on the instance.
    pub(crate) fn bgctl(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bgctl"));
        command.arg("--pin-root").arg(&self.paths.pin_root).arg("--state-dir").arg(&self.paths.state_dir);
        command
    }

    pub(crate) fn attach(&self, interface: &str, mode: AttachMode) -> Result<Vec<Attached>, Error> {
        attach(&self.paths, &[interface.to_owned()], &AttachOptions { mode, ..AttachOptions::default() })
    }

    /// Runs this build's bgctl to its end: exit code, standard output, standard error.
    pub(crate) fn run(&self, words: &[&str]) -> (i32, String, String) {
        let output = self.bgctl().args(words).output().expect("bgctl runs");
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// Runs this build's bgctl to its end. Returns how long that took.
    pub(crate) fn time(&self, words: &[&str]) -> Duration {
        let start = Instant::now();
        let (code, _, stderr) = self.run(words);
        assert_eq!(code, 0, "{words:?}: {stderr}");
        start.elapsed()
    }

    /// Starts this build's bgctl and kills it after this time.
    pub(crate) fn kill_after(&self, time: Duration, words: &[&str]) {
        let mut child = self.bgctl().args(words).stdout(Stdio::null()).spawn().expect("bgctl runs");
        std::thread::sleep(time);
        child.kill().expect("it has not been waited for");
        child.wait().expect("it has been killed");
    }

    /// Starts this build's bgctl and kills it as soon as `is_done`, if it has not ended before.
    pub(crate) fn kill_when(&self, is_done: impl Fn() -> bool, words: &[&str]) {
        let mut child = self.bgctl().args(words).stdout(Stdio::null()).spawn().expect("bgctl runs");
        while !is_done() && child.try_wait().expect("it is a child").is_none() {}
        child.kill().expect("it may be waited for");
        child.wait().expect("it has been killed");
    }

    pub(crate) fn instance(&self) -> Instance {
        Instance::open(&self.paths).expect("the instance opens")
    }

    /// A file of the test's own.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).expect("a file in a directory of our own");
        path
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = detach(&self.paths, &Target::All) {
            eprintln!("{error}");
        }
    }
}

/// A deployment of one service with these last bytes and weights as its backends.
pub(crate) fn config(name: &str, blue: &[(u8, u32)], green: &[(u8, u32)]) -> Config {
    let backends = |colour: Colour, backends: &[(u8, u32)]| {
        let spec = |(octet, weight): &(u8, u32)| BackendSpec {
            address: ([10, 0, colour as u8, *octet], 8443).into(),
            weight: *weight,
        };
        backends.iter().map(spec).collect()
    };
    Config {
        deployments: vec![Deployment {
            name: name.to_owned(),
            initial: Colour::Blue,
            on_switch: OnSwitch::Drain,
            drain_timeout: None,
            tcp_idle_timeout: std::time::Duration::from_secs(7200),
            udp_idle_timeout: std::time::Duration::from_secs(60),
            sticky: DivideBy::Flow,
            sticky_prefix: StickyPrefix::default(),
            testers: Vec::new(),
            health: None,
            failover: Failover::default(),
            gates: Vec::new(),
            services: vec![Service {
                name: "web".to_owned(),
                vip: ([203, 0, 113, 10], 443).into(),
                protocol: Protocol::Tcp,
                mode: bg_userspace::Mode::Nat,
                preview: None,
                is_mirrored: false,
                tee: Tee::default(),
                encap: Encap::default(),
                backends: [backends(Colour::Blue, blue), backends(Colour::Green, green)],
                health: None,
                is_unchecked: false,
            }],
        }],
        ..Config::default()
    }
}
