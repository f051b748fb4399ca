//! Whether a command exits with 0.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncReadExt as _,
    process::{Child, Command},
};

use super::why::Why;
use crate::serve::board::BackendKey;

/// How much of a command's last words are kept.
const WORDS: u64 = 512;

/// Runs the command in a process group of its own, which is killed if this does not wait for its end.
pub(super) async fn check(command: &[String], key: &BackendKey, to: SocketAddr) -> Result<(), Why> {
    let Some((program, arguments)) = command.split_first() else { return Err(Why::new("there is no command")) };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("BGCTL_DEPLOYMENT", &key.deployment)
        .env("BGCTL_SERVICE", &key.service)
        .env("BGCTL_COLOUR", key.colour.name())
        .env("BGCTL_BACKEND", key.address.to_string())
        .env("BGCTL_ADDRESS", to.ip().to_string())
        .env("BGCTL_PORT", to.port().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    let child = command.spawn().map_err(|error| Why::new(format_args!("cannot run {program}: {error}")))?;
    let mut group = Group(child);
    let stderr = group.0.stderr.take();
    let mut words = Vec::new();
    let status = {
        // Read meanwhile, so that a command which says much does not wait for that.
        let reading = async {
            if let Some(mut stderr) = stderr {
                let _ = (&mut stderr).take(WORDS).read_to_end(&mut words).await;
                let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
            }
        };
        let mut reading = std::pin::pin!(reading);
        let mut has_read = false;
        let status = loop {
            tokio::select! {
                status = group.0.wait() => break status,
                () = &mut reading, if !has_read => has_read = true,
            }
        };
        if !has_read {
            // A child of it may still have the pipe open.
            let _ = tokio::time::timeout(Duration::from_millis(10), &mut reading).await;
        }
        status
    };
    let status = status.map_err(|error| Why::new(format_args!("cannot wait for {program}: {error}")))?;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&words).trim().to_owned();
    Err(Why::new(if words.is_empty() {
        format!("{program}: {status}")
    } else {
        format!("{program}: {status}: {words}")
    }))
}

/// A running command, with all that it has started.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // `None` if it has been waited for. Before that, no other process can have its number.
        if let Some(pid) = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use bg_common::Colour;

    use super::*;

    async fn run(script: &str) -> Result<(), Why> {
        let key = BackendKey {
            deployment: "shop".to_owned(),
            service: "web".to_owned(),
            colour: Colour::Green,
            address: "[2001:db8::1]:80".parse().unwrap(),
        };
        let to = SocketAddr::new(key.address.ip(), 8080);
        check(&["sh", "-c", script].map(str::to_owned), &key, to).await
    }

    #[tokio::test]
    async fn the_exit_code_decides_and_its_words_say_why() {
        assert_eq!(run("exit 0").await, Ok(()));
        assert_eq!(run("echo no database >&2; exit 3").await, Err(Why::new("sh: exit status: 3: no database")));
        let talks = "head -c 1000000 /dev/zero >&2; head -c 1000000 /dev/zero; exit 1";
        assert!(run(talks).await.is_err());
        let missing = check(
            &["/nonexistent".to_owned()],
            &BackendKey {
                deployment: String::new(),
                service: String::new(),
                colour: Colour::Blue,
                address: "10.0.0.1:1".parse().unwrap(),
            },
            "10.0.0.1:1".parse().unwrap(),
        )
        .await;
        assert!(missing.unwrap_err().to_string().starts_with("cannot run /nonexistent"));
    }

    #[tokio::test]
    async fn it_is_told_which_backend_to_check() {
        let script = r#"[ "$BGCTL_DEPLOYMENT $BGCTL_SERVICE $BGCTL_COLOUR $BGCTL_BACKEND $BGCTL_ADDRESS $BGCTL_PORT" = \
            "shop web green [2001:db8::1]:80 2001:db8::1 8080" ]"#;
        assert_eq!(run(script).await, Ok(()));
    }

    #[tokio::test]
    async fn its_whole_process_group_is_killed_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("alive");
        let script = format!("(while :; do echo x >> {0}; sleep 0.01; done) & sleep 60", file.display());
        let ran = tokio::time::timeout(Duration::from_millis(300), run(&script)).await;
        assert!(ran.is_err());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let size = || std::fs::metadata(&file).unwrap().len();
        let before = size();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(before > 0 && size() == before, "what it has started goes on");
    }

    #[tokio::test]
    async fn a_child_that_stays_does_not_hold_it_up() {
        let begin = std::time::Instant::now();
        assert_eq!(run("sleep 5 & exit 0").await, Ok(()));
        assert!(begin.elapsed() < Duration::from_secs(2));
    }
}
