//! Who may do what, and who is refused.

use crate::setup::{LISTEN, Served, sha256};
use anyhow::{Context, Result};
use bg_tests::{HttpAnswer, HttpClient, config::DEPLOYMENT};
use serde_json::json;
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

/// A user and a group that each Debian has.
const NOBODY: u32 = 65_534;

/// Writes tokens that only root can read: the token of each name is the name twice.
fn tokens(path: &Path, entries: &[(&str, &str)]) -> Result<()> {
    let line = |(name, role): &(&str, &str)| Ok(format!("{name} {role} {}\n", sha256(&format!("{name}{name}"))?));
    fs::write(path, entries.iter().map(line).collect::<Result<String>>()?)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}

fn with_tokens() -> Result<Served> {
    Served::with(|dir| {
        let path = dir.join("tokens");
        tokens(&path, &[("eve", "viewer"), ("ci", "operator"), ("chief", "admin")])?;
        Ok(format!("listen = \"{LISTEN}\"\ntokens = \"{}\"", path.display()))
    })
}

fn ask(client: &mut HttpClient, method: &str, path: &str, token: &str) -> Result<HttpAnswer> {
    let bearer = format!("Bearer {token}");
    let kind = if path.starts_with("/v1/deployments") { "application/json" } else { "application/toml" };
    let body: &[u8] = if method == "POST" && kind == "application/json" { b"{}" } else { b"" };
    client.request(method, path, &[("Authorization", &bearer), ("Content-Type", kind)], body)
}

#[test]
fn a_token_gives_its_role_and_no_other() -> Result<()> {
    let mut served = with_tokens()?;
    let mut client = served.tcp()?;
    let switch = format!("/v1/deployments/{DEPLOYMENT}/switch");
    let generation =
        |served: &Served| Ok::<_, anyhow::Error>(served.ready.bgctl.deployment(DEPLOYMENT)?["generation"].clone());
    let before = generation(&served)?;
    assert_eq!((client.get("/healthz")?.status, client.get("/metrics")?.status), (200, 200));
    for token in ["", "eve", "eveev", "eveevee", "CICI"] {
        for (method, path) in
            [("GET", "/v1/status"), ("GET", "/"), ("GET", "/nothing"), ("POST", switch.as_str()), ("POST", "/v1/apply")]
        {
            let answer = ask(&mut client, method, path, token)?;
            assert_eq!(answer.status, 401, "{token} {path}");
            assert!(answer.header("www-authenticate").is_some_and(|it| it.starts_with("Bearer")), "{answer:?}");
            assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        }
    }
    assert_eq!(client.get("/v1/status")?.status, 401, "root needs a token too, over TCP");
    let mut events = served.events()?;
    // An empty configuration is not valid, but whoever is told so was let in.
    for (token, look, change, rule) in
        [("eveeve", 200, 403, 403), ("cici", 200, 200, 403), ("chiefchief", 200, 200, 422)]
    {
        assert_eq!(ask(&mut client, "GET", "/v1/status", token)?.status, look, "{token}");
        assert_eq!(ask(&mut client, "POST", &switch, token)?.status, change, "{token}");
        assert_eq!(ask(&mut client, "POST", "/v1/check", token)?.status, rule, "{token}");
        if change == 403 {
            assert_eq!(generation(&served)?, before, "nothing was changed");
        }
    }
    let after = generation(&served)?;
    assert_eq!(after.as_u64(), before.as_u64().map(|before| before + 2), "ci and chief have switched once each");
    let history = served.ready.bgctl.json(&["history", "--last", "2"])?;
    let who: Vec<_> = (0..2).map(|nth| history["records"][nth]["who"]["user"].clone()).collect();
    assert_eq!(who, ["ci", "chief"]);
    let forbidden = events.next_of("forbidden")?;
    assert_eq!(
        (&forbidden["who"], &forbidden["role"], &forbidden["needs"]),
        (&json!("eve"), &json!("viewer"), &json!("operator"))
    );
    assert!(served.controller.log()?.contains("the role is not enough"));

    // A browser that was given the token as a password. What is asked for over the socket needs none.
    let basic = client.request("GET", "/v1/status", &[("Authorization", "Basic ZXZlOmV2ZWV2ZQ==")], b"")?;
    assert_eq!(basic.status, 200);
    assert_eq!(served.client()?.get("/v1/status")?.status, 200);
    assert_eq!(ask(&mut served.client()?, "GET", "/v1/status", "wrong")?.status, 401, "a wrong token is not ignored");

    // Tokens are read again with the configuration. Who has lost one has lost its events too.
    tokens(&served.ready.lab.sandbox.dir().join("tokens"), &[("new", "viewer")])?;
    served.controller.reload()?;
    let end = Instant::now() + Duration::from_secs(5);
    while ask(&mut client, "GET", "/v1/status", "cici")?.status != 401 {
        assert!(Instant::now() < end, "the token is valid still: {}", served.controller.log()?);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(ask(&mut client, "GET", "/v1/status", "newnew")?.status, 200);
    while let Ok(event) = events.next_event() {
        assert!(Instant::now() < end, "the events go on: {event:?}");
    }
    // A file that everybody can read is not taken, and those from before stay.
    let path = served.ready.lab.sandbox.dir().join("tokens");
    tokens(&path, &[("ci", "admin")])?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    served.controller.reload()?;
    served.controller.wait_for("chmod 640")?;
    assert_eq!(ask(&mut client, "GET", "/v1/status", "cici")?.status, 401);
    assert_eq!(ask(&mut client, "GET", "/v1/status", "newnew")?.status, 200);
    Ok(())
}

/// Runs curl as another user, in the edge's namespace. The status and the body of the answer.
fn as_user(served: &Served, uid: u32, gid: u32, arguments: &[&str]) -> Result<(String, String)> {
    let mut command = served.ready.lab.edge.command("setpriv");
    command.args(["--clear-groups", "--reuid", &uid.to_string(), "--regid", &gid.to_string()]);
    command.args(["curl", "--silent", "--max-time", "10", "--write-out", "\n%{http_code}"]).args(arguments);
    let output = command.output().context("cannot run curl")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').context("no status")?;
    Ok((status.to_owned(), body.to_owned()))
}

#[test]
fn users_of_this_host_are_told_apart_on_the_socket_and_on_loopback() -> Result<()> {
    let group = "nogroup";
    let served = Served::with(|_| Ok(format!("listen = \"{LISTEN}\"\nsocket_group = \"{group}\"")))?;
    let socket = served.socket().display().to_string();
    // The directories that lead to it are open to all.
    assert_eq!(fs::metadata(served.socket())?.permissions().mode() & 0o777, 0o660);
    let path = format!("http://{LISTEN}/v1/deployments/{DEPLOYMENT}/switch");
    let post: &[&str] = &["--request", "POST", &path];
    let over_socket = [&["--unix-socket", &socket], post].concat();
    let daemon = 1;
    let live = || served.ready.bgctl.live(DEPLOYMENT);
    for (uid, gid, over, status, after) in [
        // A stranger: no way to the socket, and no role on loopback.
        (daemon, daemon, &over_socket[..], "000", "blue"),
        (daemon, daemon, post, "403", "blue"),
        // A member of the group.
        (NOBODY, NOBODY, &over_socket[..], "200", "green"),
        (NOBODY, NOBODY, post, "200", "blue"),
        (0, 0, post, "200", "green"),
    ] {
        let (got, body) = as_user(&served, uid, gid, over)?;
        assert_eq!((got.as_str(), live()?.as_str()), (status, after), "{uid} {over:?}: {body}");
    }
    let history = served.ready.bgctl.json(&["history", "--last", "3"])?;
    let who: Vec<_> = (0..3).map(|nth| history["records"][nth]["who"].clone()).collect();
    assert_eq!(who[0], json!({ "user": "nobody", "uid": NOBODY }));
    assert_eq!((&who[1], &who[2]), (&who[0], &json!({ "user": "root", "uid": 0 })));
    // A member is no admin.
    let apply = format!("http://{LISTEN}/v1/check");
    let (status, body) = as_user(&served, NOBODY, NOBODY, &["--request", "POST", &apply])?;
    assert!(status == "403" && body.contains("needs admin"), "{status} {body}");
    let commands =
        ["--header", "Content-Type: application/json", "--data", "{\"freeze\": \"1s\", \"before\": \"true\"}"];
    let (status, body) = as_user(&served, NOBODY, NOBODY, &[post, &commands].concat())?;
    assert!(status == "403" && body.contains("root"), "{status} {body}");
    // Whoever they are, they may know that it lives.
    assert_eq!(as_user(&served, daemon, daemon, &[&format!("http://{LISTEN}/healthz")])?.0, "200");
    served.ready.neighbour_is_undisturbed()?;
    Ok(())
}

#[test]
fn what_a_page_of_somebody_else_sends_is_refused() -> Result<()> {
    let served = Served::local()?;
    let switch = format!("/v1/deployments/{DEPLOYMENT}/switch");
    let mut client = served.tcp()?;
    let json = ("Content-Type", "application/json");
    for (headers, status) in [
        (vec![json, ("Origin", "http://evil.example")], 403),
        (vec![json, ("Origin", "null")], 403),
        (vec![json, ("Origin", "http://localhost:8080")], 403),
        (vec![json, ("Sec-Fetch-Site", "cross-site")], 403),
        (vec![json, ("Sec-Fetch-Site", "same-site")], 403),
        (vec![json, ("Host", "evil.example")], 421),
        (vec![json, ("Host", "evil.example:7470"), ("Origin", "http://evil.example:7470")], 421),
        // What a form can send without asking.
        (vec![("Content-Type", "text/plain")], 415),
        (vec![("Content-Type", "application/x-www-form-urlencoded")], 415),
        (vec![], 415),
    ] {
        let answer = client.request("POST", &switch, &headers, b"{}")?;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (status, Some("application/problem+json")),
            "{headers:?}"
        );
        assert_eq!(answer.header("access-control-allow-origin"), None);
    }
    let preflight = client.request(
        "OPTIONS",
        &switch,
        &[("Origin", "http://evil.example"), ("Access-Control-Request-Method", "POST")],
        b"",
    )?;
    assert_eq!((preflight.status, preflight.header("access-control-allow-origin")), (403, None));
    assert_eq!(served.ready.bgctl.live(DEPLOYMENT)?, "blue");
    let own =
        [json, ("Host", "localhost:7470"), ("Origin", "http://localhost:7470"), ("Sec-Fetch-Site", "same-origin")];
    assert_eq!(client.request("POST", &switch, &own, b"{}")?.status, 200);
    let page = client.get("/")?;
    for header in
        ["content-security-policy", "x-content-type-options", "x-frame-options", "referrer-policy", "cache-control"]
    {
        assert!(page.header(header).is_some(), "{header}");
    }
    Ok(())
}

/// An admin of the controller is not yet root of its host, and the next switch runs the gates, often as root.
#[test]
fn only_root_of_the_host_configures_commands() -> Result<()> {
    let served = with_tokens()?;
    let made = served.ready.lab.sandbox.dir().join("made");
    let before = fs::read_to_string(served.ready.bgctl.config())?;
    let config = before.clone()
        + &format!(
            "\n[[deployments.{DEPLOYMENT}.gates]]\nwhen = \"before\"\nkind = \"exec\"\ncommand = [\"touch\", \"{}\"]\n",
            made.display()
        );
    let apply = |config: &str| {
        let headers = [("Authorization", "Bearer chiefchief"), ("Content-Type", "application/toml")];
        served.tcp()?.request("POST", "/v1/apply", &headers, config.as_bytes())
    };
    let added = apply(&config)?;
    assert!(added.status == 403 && added.text().contains("would add a gate"), "{}", added.text());
    served.ready.bgctl.run(&["switch", DEPLOYMENT])?;
    assert!(!made.exists(), "the command was not run");
    // Root is who it is, whatever it says.
    let root = [("Content-Type", "application/toml")];
    assert_eq!(served.client()?.request("POST", "/v1/apply", &root, config.as_bytes())?.status, 200);
    served.ready.bgctl.run(&["switch", DEPLOYMENT])?;
    assert!(made.exists());

    // Commands that stay hinder no apply. None is changed or taken away.
    let key = format!("[deployments.{DEPLOYMENT}]");
    let with_timeout = config.replace(&key, &format!("{key}\ndrain_timeout = \"7m\""));
    let stays = apply(&with_timeout)?;
    assert_eq!(stays.status, 200, "{}", stays.text());
    for (other, what) in [(config.replace("\"touch\"", "\"echo\""), "change"), (before, "remove")] {
        let refused = apply(&other)?;
        assert!(
            refused.status == 403 && refused.text().contains(&format!("would {what} a gate")),
            "{}",
            refused.text()
        );
    }
    assert!(served.ready.bgctl.run(&["show"])?.contains("7m"), "what was refused has changed nothing");
    Ok(())
}

/// Splits and rollbacks ask no gates, and only an admin makes a colour live without them.
#[test]
fn an_operator_does_not_go_round_the_gates() -> Result<()> {
    let served = with_tokens()?;
    let config = fs::read_to_string(served.ready.bgctl.config())?
        + &format!("\n[[deployments.{DEPLOYMENT}.gates]]\nwhen = \"before\"\nkind = \"exec\"\ncommand = [\"false\"]\n");
    served.ready.bgctl.apply(&config)?;
    let post = |token: &str, verb: &str, body: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        served.tcp()?.request("POST", &format!("/v1/deployments/{DEPLOYMENT}/{verb}"), &headers, body.as_bytes())
    };
    let live = || served.ready.bgctl.live(DEPLOYMENT);
    let ways = [
        ("switch", r#"{"to":"green""#, "exit status: 1"),
        ("split", r#"{"green":100"#, "a split asks none"),
        ("rollback", r#"{"to":"green""#, "a rollback asks none"),
    ];
    for (verb, body, why) in ways {
        let refused = post("cici", verb, &format!("{body}}}"))?;
        assert!(refused.status == 409 && refused.text().contains(why), "{verb}: {}", refused.text());
        let skips = format!(r#"{body},"skip_gates":true}}"#);
        assert_eq!((post("cici", verb, &skips)?.status, live()?.as_str()), (403, "blue"), "{verb}");
        let done = post("chiefchief", verb, &skips)?;
        assert_eq!((done.status, live()?.as_str()), (200, "green"), "{verb}: {}", done.text());
        let history = served.ready.bgctl.json(&["history", "--last", "1"])?;
        assert_eq!(history["records"][0]["reason"], "gates skipped", "{verb}");
        if verb == "rollback" {
            continue;
        }
        // Back is free.
        assert_eq!((post("cici", "rollback", "{}")?.status, live()?.as_str()), (200, "blue"), "{verb}");
    }
    Ok(())
}

/// What needs more than the role of a request's path is told as loudly as what needs that.
#[test]
fn an_option_that_the_role_does_not_allow_is_told_to_those_who_listen() -> Result<()> {
    let served = with_tokens()?;
    let switch = format!("/v1/deployments/{DEPLOYMENT}/switch");
    let exec = fs::read_to_string(served.ready.bgctl.config())?
        + &format!("\n[[deployments.{DEPLOYMENT}.gates]]\nwhen = \"before\"\nkind = \"exec\"\ncommand = [\"true\"]\n");
    let mut events = served.events()?;
    let [json_type, toml] = ["application/json", "application/toml"];
    for (token, path, kind, body, role, needs) in [
        ("cici", &*switch, json_type, "{\"skip_gates\": true}", "operator", "admin"),
        ("cici", &switch, json_type, "{\"skip_gates\": true, \"dry_run\": true}", "operator", "admin"),
        ("chiefchief", &switch, json_type, "{\"freeze\": \"1s\", \"before\": \"true\"}", "admin", "root of this host"),
        ("chiefchief", "/v1/apply", toml, &exec, "admin", "root of this host"),
        ("cici", "/v1/apply", toml, &exec, "operator", "admin"),
        ("eveeve", &switch, json_type, "{}", "viewer", "operator"),
    ] {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", kind)];
        let answer = served.tcp()?.request("POST", path, &headers, body.as_bytes())?;
        assert_eq!(answer.status, 403, "{token} {body}: {}", answer.text());
        let told = events.next_of("forbidden")?;
        assert_eq!((&told["role"], &told["needs"]), (&json!(role), &json!(needs)), "{told}");
        let request = told["request"].as_str().unwrap_or_default();
        assert!(
            request.starts_with(&format!("POST {path}")) && token.starts_with(told["who"].as_str().unwrap_or("?")),
            "{told}"
        );
        assert!(served.controller.log()?.contains(request), "{request}");
    }
    assert_eq!(served.ready.bgctl.live(DEPLOYMENT)?, "blue");
    Ok(())
}

/// Somebody who applies has the controller read its file, and those who listen do not notice unless roles have changed.
#[test]
fn an_apply_ends_no_events_and_the_log_says_what_else_has_come_into_force() -> Result<()> {
    let mut served = with_tokens()?;
    let config = fs::read_to_string(served.ready.bgctl.config())?;
    let mut events = served.events()?;
    // Saved, and not meant yet.
    let hook = "\n[[notify]]\nurl = \"http://127.0.0.1:9/\"\n";
    served.ready.bgctl.write_config(&(config.clone() + hook))?;
    let applied = config.replacen("drain_timeout = \"1h\"", "drain_timeout = \"2h\"", 1);
    let headers = [("Authorization", "Bearer chiefchief"), ("Content-Type", "application/toml")];
    let answer = served.tcp()?.request("POST", "/v1/apply", &headers, applied.as_bytes())?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    served.controller.wait_for("tokens and group were read again")?;
    served.controller.wait_for("\"changed\":\"notify\"")?;
    assert_eq!(events.next_of("recorded")?["action"], "apply");
    (0..3).try_for_each(|_| events.next_of("counters").map(drop))?;
    // The same tokens in another file are the same. Others are not.
    served.controller.reload()?;
    (0..3).try_for_each(|_| events.next_of("counters").map(drop))?;
    tokens(&served.ready.lab.sandbox.dir().join("tokens"), &[("eve", "viewer")])?;
    served.controller.reload()?;
    let end = Instant::now() + Duration::from_secs(10);
    while let Ok(event) = events.next_event() {
        assert!(Instant::now() < end, "the events go on: {event:?}");
    }
    Ok(())
}

/// Who may connect changes with the configuration, not only who is believed.
#[test]
fn a_reload_gives_the_socket_to_another_group() -> Result<()> {
    let mut served = Served::with(|_| Ok("socket_group = \"nogroup\"".to_owned()))?;
    let socket = served.socket().display().to_string();
    let look = ["--unix-socket", &socket, "http://localhost/v1/status"];
    let daemon = 1;
    let answers = |served: &Served| {
        let of = |id| Ok::<_, anyhow::Error>(as_user(served, id, id, &look)?.0);
        Ok::<_, anyhow::Error>([of(NOBODY)?, of(daemon)?])
    };
    assert_eq!(answers(&served)?, ["200", "000"]);
    let config = fs::read_to_string(served.ready.bgctl.config())?;
    served.ready.bgctl.write_config(&config.replace("\"nogroup\"", "\"daemon\""))?;
    served.controller.reload()?;
    served.controller.wait_for("tokens and group were read again")?;
    assert_eq!(answers(&served)?, ["000", "200"]);
    // Of a group that does not exist, nothing is known, and the one before stays.
    served.ready.bgctl.write_config(&config.replace("\"nogroup\"", "\"no such group\""))?;
    served.controller.reload()?;
    served.controller.wait_for("those from before stay in force")?;
    assert_eq!(answers(&served)?, ["000", "200"]);
    // Without a group, it is root's own.
    served.ready.bgctl.write_config(&config.replace("socket_group = \"nogroup\"", ""))?;
    served.controller.reload()?;
    let end = Instant::now() + Duration::from_secs(10);
    while fs::metadata(served.socket())?.permissions().mode() & 0o777 != 0o600 {
        assert!(Instant::now() < end, "{}", served.controller.log()?);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(answers(&served)?, ["000", "000"]);
    assert_eq!(served.client()?.get("/v1/status")?.status, 200);
    Ok(())
}
