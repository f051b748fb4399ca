//! What becomes of a change when the state directory cannot be written, hangs, or is open to others.

use std::{
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use bg_userspace::{
    AttachMode, Error, Paths, SwitchRequest, Target,
    config::Config,
    detach,
    history::{Action, History},
};

use crate::lab::{Lab, config};

/// Two deployments; "shop", the second one, is what the tests switch.
pub(crate) fn two() -> Config {
    let mut both = config("mail", &[(1, 1)], &[(2, 1)]);
    let mut shop = config("shop", &[(3, 1)], &[(4, 1)]);
    shop.deployments[0].services[0].vip.set_port(8443);
    both.deployments.append(&mut shop.deployments);
    both
}

pub(crate) fn running() -> Lab {
    let lab = Lab::new();
    lab.attach("v0", AttachMode::Tc).unwrap();
    lab.instance().apply(&two()).unwrap();
    lab
}

pub(crate) fn live(lab: &Lab) -> (&'static str, u32) {
    let status = lab.instance().status(Some("shop")).unwrap();
    (status.deployments[0].live, status.deployments[0].generation)
}

fn actions(paths: &Paths) -> Vec<(Action, u32)> {
    let journal = History::new(&paths.state_dir).read(Some("shop")).unwrap();
    journal.records.iter().map(|record| (record.action, record.to.unwrap().generation)).collect()
}

/// Makes the state directory unusable, and gives what makes it usable again.
pub(crate) type Breakage = fn(&Path) -> Box<dyn FnOnce()>;

pub(crate) const BROKEN: [(&str, Breakage); 5] = [
    ("a file is in its place", |dir| {
        let (dir, aside) = (dir.to_owned(), dir.with_file_name("aside"));
        fs::rename(&dir, &aside).unwrap();
        fs::write(&dir, "").unwrap();
        Box::new(move || {
            fs::remove_file(&dir).unwrap();
            fs::rename(&aside, &dir).unwrap();
        })
    }),
    ("it is full", |dir| {
        let (dir, aside) = (dir.to_owned(), dir.with_file_name("aside"));
        fs::rename(&dir, &aside).unwrap();
        fs::create_dir(&dir).unwrap();
        run("mount", &["-t", "tmpfs", "-o", "size=16k,mode=0700", "tmpfs", dir.to_str().unwrap()]);
        for file in fs::read_dir(&aside).unwrap() {
            fs::copy(file.as_ref().unwrap().path(), dir.join(file.unwrap().file_name())).unwrap();
        }
        let mut filler = File::create(dir.join("filler")).unwrap();
        while filler.write_all(&[0; 512]).is_ok() {}
        Box::new(move || {
            run("umount", &[dir.to_str().unwrap()]);
            fs::remove_dir(&dir).unwrap();
            fs::rename(&aside, &dir).unwrap();
        })
    }),
    ("somebody holds its lock", |dir| {
        let file = File::open(dir.join("history.lock")).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        Box::new(move || drop(file))
    }),
    ("it is read-only", |dir| {
        let dir = dir.to_owned();
        run("mount", &["--bind", dir.to_str().unwrap(), dir.to_str().unwrap()]);
        run("mount", &["-o", "remount,bind,ro", dir.to_str().unwrap()]);
        Box::new(move || run("umount", &[dir.to_str().unwrap()]))
    }),
    // Opening it waits for a writer, as a file on a network file system waits for its server.
    ("a file in it does not answer", |dir| {
        let (file, aside) = (dir.join("live.json"), dir.join("live.json.aside"));
        fs::rename(&file, &aside).unwrap();
        run("mkfifo", &[file.to_str().unwrap()]);
        Box::new(move || {
            // Whoever waits gets to the end of an empty file.
            let fifo = File::options().read(true).write(true).open(&file).unwrap();
            fs::rename(&aside, &file).unwrap();
            drop(fifo);
        })
    }),
];

fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

#[test]
fn no_switch_fails_for_want_of_a_state_directory() {
    for (what, breakage) in BROKEN {
        let lab = running();
        let mend = breakage(&lab.paths.state_dir);
        let start = Instant::now();
        let error = lab.instance().switch("shop", &SwitchRequest::default()).unwrap_err();
        assert!(matches!(error, Error::NotRecorded { live: "green", generation: 2, .. }), "{what}: {error}");
        assert_eq!(live(&lab), ("green", 2), "{what}");
        assert!(start.elapsed() < Duration::from_secs(9), "{what}: {:?}", start.elapsed());
        mend();
        let again = SwitchRequest { to: Some(bg_userspace::Colour::Blue), ..SwitchRequest::default() };
        lab.instance().switch("shop", &again).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        // Whoever has waited for an answer may have recorded it by himself.
        let recorded = actions(&lab.paths);
        let by_itself = [(Action::Apply, 1), (Action::Switch, 2), (Action::Switch, 3)];
        let recovered = [(Action::Apply, 1), (Action::Recovered, 2), (Action::Switch, 3)];
        assert!(recorded == recovered || recorded == by_itself, "{what}: {recorded:?}");
    }
}

#[test]
fn an_apply_that_cannot_be_recorded_is_done_and_says_so() {
    let (_, breakage) = BROKEN[0];
    let lab = running();
    let mend = breakage(&lab.paths.state_dir);
    let mut next = two();
    next.deployments[1].services[0].backends[0][0].weight = 9;
    let error = lab.instance().apply(&next).unwrap_err();
    assert!(matches!(error, Error::DoneNotRecorded { .. }), "{error}");
    assert!(error.to_string().contains("the apply is done"), "{error}");
    assert!(lab.instance().plan(&next).unwrap().is_empty());
    mend();
}

#[test]
fn without_a_state_directory_everything_can_be_taken_off() {
    for (what, breakage) in [BROKEN[0], BROKEN[3]] {
        let lab = running();
        let mend = breakage(&lab.paths.state_dir);
        let error = detach(&lab.paths, &Target::All).unwrap_err();
        assert!(matches!(error, Error::DoneNotRecorded { .. }), "{what}: {error}");
        assert!(!lab.paths.pin_root.exists(), "{what}");
        mend();
    }
}

#[test]
fn who_reads_the_history_is_told_when_it_does_not_answer() {
    let lab = running();
    let journal = lab.paths.state_dir.join(History::FILE);
    fs::remove_file(&journal).unwrap();
    // Opening it waits for a writer.
    run("mkfifo", &[journal.to_str().unwrap()]);
    let start = Instant::now();
    let (code, _, stderr) = lab.run(&["history", "shop"]);
    assert!(code == 1 && stderr.contains("does not respond"), "{code}: {stderr}");
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    // Whoever waits gets to the end of an empty file.
    drop(File::options().read(true).write(true).open(&journal).unwrap());
}

#[test]
fn a_switch_that_nobody_has_recorded_is_recorded_when_it_is_run_again() {
    for (command, expected) in [
        (&["rollback", "shop"][..], 3),
        (&["switch", "shop", "blue", "--if-generation", "2"], 3),
        (&["switch", "shop", "blue"], 0),
    ] {
        let lab = running();
        lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
        let mend = BROKEN[0].1(&lab.paths.state_dir);
        // Killed before it is recorded, as far as anybody can tell.
        lab.instance().rollback("shop", &SwitchRequest::default()).unwrap_err();
        mend();
        assert_eq!(actions(&lab.paths), [(Action::Apply, 1), (Action::Switch, 2)]);
        let (code, _, stderr) = lab.run(command);
        assert_eq!(code, expected, "{stderr}");
        assert_eq!(actions(&lab.paths), [(Action::Apply, 1), (Action::Switch, 2), (Action::Recovered, 3)]);
    }
}

/// All files and directories below.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        if path.is_dir() && !path.is_symlink() {
            found.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        }
        next += 1;
    }
    found
}

#[test]
fn no_other_user_can_lock_anything_of_an_instance() {
    let lab = running();
    fs::set_permissions(lab.paths.state_dir.parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    let ours = |lab: &Lab| [below(&lab.paths.pin_root), below(&lab.paths.state_dir)].concat();
    let reachable = |lab: &Lab| {
        let mut paths = ours(lab);
        paths.retain(|path| {
            let mut flock = Command::new("setpriv");
            flock.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "flock", "--nonblock"]);
            flock.arg(path).arg("true").output().unwrap().status.success()
        });
        paths
    };
    assert_eq!(reachable(&lab), Vec::<PathBuf>::new());

    // As an earlier version has left it.
    for path in ours(&lab).into_iter().filter(|path| !path.is_symlink()) {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        if path.starts_with(&lab.paths.state_dir) || path.is_dir() {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
    }
    let stranger = File::open(lab.paths.state_dir.join("history.lock")).unwrap();
    rustix::fs::flock(&stranger, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    assert!(reachable(&lab).len() > 4, "{:?}", reachable(&lab));
    lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
    lab.attach("v0", AttachMode::Tc).unwrap();
    assert_eq!(reachable(&lab), Vec::<PathBuf>::new());
    assert_eq!(fs::metadata(&lab.paths.state_dir).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn a_state_directory_with_files_of_others_stays_open_to_them() {
    let lab = running();
    fs::write(lab.paths.state_dir.join("somebody else's"), "").unwrap();
    fs::set_permissions(&lab.paths.state_dir, Permissions::from_mode(0o755)).unwrap();
    lab.instance().switch("shop", &SwitchRequest::default()).unwrap();
    assert_eq!(fs::metadata(&lab.paths.state_dir).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_killed_switch_leaves_no_setting_of_the_kernel_behind() {
    const SETTING: &str = "/sys/kernel/rcu_expedited";
    let lab = running();
    let mark = lab.paths.pin_root.join("expedited");
    // As a switch does that is killed in the middle of its wait: the process of this number has another start.
    std::os::unix::fs::symlink("1 18446744073709551615", &mark).unwrap();
    fs::write(SETTING, "1").unwrap();
    lab.instance();
    assert_eq!(fs::read_to_string(SETTING).unwrap().trim(), "0");
    assert!(!mark.is_symlink());
    std::os::unix::fs::symlink("1 18446744073709551615", &mark).unwrap();
    fs::write(SETTING, "1").unwrap();
    detach(&lab.paths, &Target::All).unwrap();
    assert_eq!(fs::read_to_string(SETTING).unwrap().trim(), "0");
}
