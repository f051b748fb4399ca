//! `bgctl history`: the journal.

use bg_userspace::history::{History, Moment, Record};

use crate::{
    args::{Global, OneDeployment},
    exit::Outcome,
    output::{self, Table},
};

pub(super) fn run(global: &Global, only: &OneDeployment) -> anyhow::Result<Outcome> {
    let journal = History::new(&global.state_dir).read(only.deployment.as_deref())?;
    if journal.damaged_lines > 0 {
        eprintln!(
            "bgctl: {} of {} could not be read and {} left out (a crash can tear a line)",
            if journal.damaged_lines == 1 { "1 line".to_owned() } else { format!("{} lines", journal.damaged_lines) },
            global.state_dir.join(History::FILE).display(),
            if journal.damaged_lines == 1 { "is" } else { "are" },
        );
    }
    if global.json {
        output::print_json(&serde_json::json!({ "records": journal.records }))?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(["TIME", "DEPLOYMENT", "ACTION", "FROM", "TO", "WHO", "WHY"]);
    for Record { time, deployment, action, from, to, who, reason, .. } in journal.records {
        table.row([
            // To the second, in UTC, as RFC 3339.
            time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            deployment,
            action.name().to_owned(),
            moment(from),
            moment(to),
            who.to_string(),
            reason.unwrap_or_default().replace(char::is_control, " "),
        ]);
    }
    if table.is_empty() {
        eprintln!("bgctl: nothing has been recorded in {}", global.state_dir.display());
    } else {
        output::print(&table.render(""))?;
    }
    Ok(Outcome::Done)
}

fn moment(moment: Option<Moment>) -> String {
    moment.map_or("-".to_owned(), |Moment { generation, live }| format!("{}@{generation}", live.name()))
}
