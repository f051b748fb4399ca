//! The OpenAPI document says what the server does.

use crate::setup::Served;
use anyhow::{Context, Result};
use bg_tests::config::DEPLOYMENT;
use serde_json::json;
use std::process::Command;

#[test]
fn each_path_of_the_document_is_there_and_gates_are_asked() -> Result<()> {
    let served = Served::with(|_| {
        let gate = "[[deployments.shop.gates]]\nwhen = \"before\"\nkind = \"exec\"\ncommand = [\"/bin/false\"]";
        Ok(format!("listen = \"{}\"\n{gate}", crate::setup::LISTEN))
    })?;
    let mut client = served.client()?;
    let document = client.get("/openapi.json")?.done()?;
    let paths = document["paths"].as_object().context("no paths")?;
    assert!(paths.len() >= 18, "{}", paths.len());
    for (path, operations) in paths {
        let path = path.replace("{name}", "nothing");
        for method in operations.as_object().context("no operations")?.keys().map(|method| method.to_uppercase()) {
            if path == "/v1/events" {
                continue;
            }
            let kind = if path.starts_with("/v1/deployments") { "application/json" } else { "application/toml" };
            let body: &[u8] = match (method.as_str(), path.as_str()) {
                ("POST", path) if path.ends_with("split") => b"{\"green\": 5}",
                ("POST", path) if path.starts_with("/v1/deployments") => b"{}",
                _ => b"",
            };
            let answer = client.request(&method, &path, &[("Content-Type", kind)], body)?;
            let is_known = answer.status != 405 && (answer.status != 404 || answer.text().contains("no deployment"));
            assert!(is_known, "{method} {path}: {} {}", answer.status, answer.text());
        }
    }
    let path = format!("/v1/deployments/{DEPLOYMENT}/switch");
    let live = || served.ready.bgctl.live(DEPLOYMENT);
    let refused = client.post(&path, &json!({}))?;
    assert_eq!((refused.status, live()?.as_str()), (409, "blue"), "{}", refused.text());
    assert!(refused.text().contains("/bin/false"), "{}", refused.text());
    let skipped = client.post(&path, &json!({ "skip_gates": true, "reason": "urgent" }))?.done()?;
    assert_eq!((&skipped["changed"], live()?.as_str()), (&json!(true), "green"));
    let history = served.ready.bgctl.json(&["history", "--last", "1"])?;
    assert_eq!(history["records"][0]["reason"], "urgent (gates skipped)");
    Ok(())
}

/// Sends what the document allows, and what it does not, and judges each answer by the document.
#[test]
fn the_document_agrees_with_each_answer() -> Result<()> {
    let examples = if std::env::var_os("BG_TEST_FULL").is_some() { "100" } else { "10" };
    let served = Served::local()?;
    let mut command: Command = served.ready.lab.edge.command(&bg_tests::schemathesis()?);
    let url = format!("http://{}", crate::setup::LISTEN);
    command.args([
        "run",
        &format!("{url}/openapi.json"),
        "--url",
        &url,
        "--max-examples",
        examples,
        "--exclude-path",
        "/v1/events",
    ]);
    command.args([
        "--checks",
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
    ]);
    command.args(["--request-timeout", "30", "--seed", "7", "--exclude-path-regex", "/drain$|/v1/(apply|plan|check)$"]);
    let output = command.current_dir(served.ready.lab.sandbox.dir()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", said.lines().rev().take(25).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n"));
    Ok(())
}
