//! Generating the pages of `docs/` and their plots from the results of the parts.

use super::{
    bars,
    machine::Fact,
    plot,
    record::{self, Record},
    report::{Report, Table},
};
use crate::{process::say, workspace};
use anyhow::{Context, Result, bail};
use std::{
    fmt::{self, Write as _},
    fs,
    path::{Path, PathBuf},
};

/// A page of the documents.
pub(crate) struct Page {
    /// The name of its file, and of the directory of its plots beside it.
    name: &'static str,
    /// The prose around the figures. The fields `@...@` are filled in.
    template: &'static str,
}

pub(crate) const PERFORMANCE: Page = Page { name: "performance", template: include_str!("page.md") };
pub(crate) const CUTOVER: Page = Page { name: "cutover", template: include_str!("cutover.md") };

/// A part and its results, if there are any.
pub(crate) struct Chapter {
    /// Name of the part.
    pub(crate) part: &'static str,
    /// Heading of its chapter.
    pub(crate) title: &'static str,
    /// Whether its tables, in which the rows are contenders, are also drawn as bars.
    pub(crate) bars: bool,
    /// The last results.
    pub(crate) record: Option<Record>,
}

impl Page {
    /// Its file and the directory of its plots, below the documents.
    fn paths(&self, docs: &Path) -> [PathBuf; 2] {
        [docs.join(self.name).with_extension("md"), docs.join(self.name)]
    }
}

/// Writes a page and its plots. The figures of a quick run go to the directory of the records, not to the
/// documents.
pub(crate) fn write(page: &Page, chapters: &[Chapter]) -> Result<()> {
    if chapters.iter().all(|chapter| chapter.record.is_none()) {
        bail!(
            "nothing has been measured yet: expected records in {}; run `cargo xtask bench`",
            record::dir().display()
        );
    }
    let quick = chapters.iter().filter_map(|chapter| chapter.record.as_ref()).any(|record| record.quick);
    let dir = if quick { record::dir() } else { workspace::root().join("docs") };
    let [file, plots] = page.paths(&dir);
    let (text, drawn) = render(page, chapters)?;
    fs::create_dir_all(&dir)?;
    remove_plots(&plots)?;
    if !drawn.is_empty() {
        fs::create_dir_all(&plots)?;
    }
    for (name, svg) in &drawn {
        put(&plots.join(name).with_extension("svg"), svg)?;
    }
    put(&file, &text)?;
    say(format_args!("wrote {}, with {} plots", file.display(), drawn.len()));
    if quick {
        say(format_args!("a quick run is not for docs/{}.md, which is left as it was", page.name));
    }
    Ok(())
}

fn put(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// Removes the plots of earlier runs, because some may no longer be drawn.
fn remove_plots(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "svg") {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Plots by name.
type Drawn = Vec<(String, String)>;

/// The page, and the plots that it shows.
fn render(page: &Page, chapters: &[Chapter]) -> Result<(String, Drawn)> {
    let (mut figures, mut drawn) = (String::new(), Drawn::new());
    for chapter in chapters {
        writeln!(figures, "## {}\n", chapter.title)?;
        match &chapter.record {
            Some(record) => report(&mut figures, &mut drawn, page, chapter, &record.report)?,
            None => writeln!(figures, "No figures: `cargo xtask bench {}` was not run, or failed.\n", chapter.part)?,
        }
    }
    let quick = chapters.iter().filter_map(|chapter| chapter.record.as_ref()).any(|record| record.quick);
    let warning = "**This was a quick run, to see that everything works. Its figures are worth nothing.**\n\n";
    let filled = [
        ("@warning@\n\n", if quick { warning.to_owned() } else { String::new() }),
        ("@machine@", of_parts(chapters, |record| &record.machine)?),
        ("@versions@", of_parts(chapters, |record| &record.versions)?),
        ("@runs@", runs(chapters)?),
        ("@figures@", figures.trim_end().to_owned()),
    ];
    Ok((filled.iter().fold(page.template.to_owned(), |text, (mark, value)| text.replace(mark, value)), drawn))
}

/// Facts as a table, or several tables if the parts were not measured on the same machine.
fn of_parts(chapters: &[Chapter], facts: fn(&Record) -> &Vec<Fact>) -> Result<String> {
    let mut groups: Vec<(&Vec<Fact>, Vec<&str>)> = Vec::new();
    for (part, record) in chapters.iter().filter_map(|chapter| Some((chapter.part, chapter.record.as_ref()?))) {
        let facts = facts(record);
        match groups.iter_mut().find(|(known, _)| *known == facts) {
            Some((_, parts)) => parts.push(part),
            None => groups.push((facts, vec![part])),
        }
    }
    let mut out = String::new();
    for (facts, parts) in &groups {
        if groups.len() > 1 {
            writeln!(out, "For {}:\n", parts.join(", "))?;
        }
        writeln!(out, "| | |\n| --- | --- |")?;
        for (name, fact) in *facts {
            writeln!(out, "| {} | {} |", escaped(name), escaped(fact))?;
        }
        writeln!(out)?;
    }
    Ok(out.trim_end().to_owned())
}

/// When, on which commit and for how long each part was measured, and how busy the machine was.
fn runs(chapters: &[Chapter]) -> Result<String> {
    let mut out = "| part | began | commit | took | noise |\n| --- | --- | --- | ---: | --- |\n".to_owned();
    for (part, record) in chapters.iter().filter_map(|chapter| Some((chapter.part, chapter.record.as_ref()?))) {
        let noise: Vec<_> = record.noise.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let Record { date, commit, seconds, .. } = record;
        writeln!(out, "| `{part}` | {date} | {commit} | {seconds} s | {} |", noise.join("; "))?;
    }
    Ok(out.trim_end().to_owned())
}

fn report(out: &mut String, drawn: &mut Drawn, page: &Page, chapter: &Chapter, report: &Report) -> Result<()> {
    writeln!(out, "{}\n", report.about)?;
    for (index, table) in report.tables.iter().enumerate() {
        self::table(out, table)?;
        if chapter.bars
            && let Some(svg) = bars::svg(table)?
        {
            show(out, drawn, page, (&format!("{}-{}", report.part, index + 1), &table.title), svg)?;
        }
    }
    for plot in &report.plots {
        show(out, drawn, page, (&plot.name, &plot.title), plot::svg(plot)?)?;
    }
    Ok(())
}

fn show(out: &mut String, drawn: &mut Drawn, page: &Page, (name, title): (&str, &str), svg: String) -> Result<()> {
    if drawn.iter().any(|(other, _)| other == name) {
        bail!("two plots are named {name}");
    }
    writeln!(out, "![{title}]({}/{name}.svg)\n", page.name)?;
    drawn.push((name.to_owned(), svg));
    Ok(())
}

fn table(out: &mut String, table: &Table) -> fmt::Result {
    writeln!(out, "### {}\n", table.title)?;
    if !table.about.is_empty() {
        writeln!(out, "{}\n", table.about)?;
    }
    let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
    writeln!(out, "{}", line(table.columns.iter().map(|head| escaped(head)).collect()))?;
    let rule = |column| if table.is_words(column) { "---" } else { "---:" };
    writeln!(out, "{}", line((0..table.columns.len()).map(|column| rule(column).to_owned()).collect()))?;
    for row in &table.rows {
        writeln!(out, "{}", line(row.iter().map(|cell| escaped(&cell.to_string())).collect()))?;
    }
    writeln!(out)
}

/// Escapes text for a cell of a table.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Cell;

    fn measured(part: &str, quick: bool) -> Record {
        let table = Table {
            title: "Packets".into(),
            about: "So they were counted.".into(),
            columns: vec!["a | b".into(), "ns".into()],
            rows: vec![vec!["ours".into(), 86.0.into()], vec!["none".into(), Cell::Empty]],
        };
        let report =
            Report { part: part.into(), about: "It is measured so.".into(), tables: vec![table], plots: Vec::new() };
        Record {
            date: "2026-01-01 10:00 UTC".into(),
            commit: "abc".into(),
            quick,
            seconds: 7,
            noise: vec![("load".into(), "0.1".into())],
            machine: vec![("CPU".into(), "a fast one".into())],
            versions: vec![("rustc".into(), "1".into())],
            report,
        }
    }

    fn chapter(part: &'static str, record: Option<Record>) -> Chapter {
        Chapter { part, title: "Data path", bars: false, record }
    }

    #[test]
    fn the_page_says_what_was_measured_and_what_was_not() {
        let (page, _) =
            render(&PERFORMANCE, &[chapter("datapath", Some(measured("datapath", false))), chapter("scale", None)])
                .unwrap();
        for said in [
            "| CPU | a fast one |",
            "| `datapath` | 2026-01-01 10:00 UTC | abc | 7 s | load: 0.1 |",
            "### Packets\n\nSo they were counted.\n\n| a \\| b | ns |\n| --- | ---: |\n| ours | 86 |\n| none | – |\n",
            "No figures: `cargo xtask bench scale` was not run, or failed.",
        ] {
            assert!(page.contains(said), "{said:?} is not in {page}");
        }
        assert!(!page.contains('@') && !page.contains("quick run"), "{page}");
    }

    #[test]
    fn another_machine_is_told_apart() {
        let mut other = measured("scale", false);
        other.machine[0].1 = "a slow one".into();
        let (page, _) = render(
            &PERFORMANCE,
            &[chapter("datapath", Some(measured("datapath", false))), chapter("scale", Some(other))],
        )
        .unwrap();
        assert!(
            page.contains("For datapath:\n\n| | |\n| --- | --- |\n| CPU | a fast one |\n\nFor scale:\n\n"),
            "{page}"
        );
    }

    #[test]
    fn a_quick_run_says_that_it_was_one() {
        let (page, _) = render(&PERFORMANCE, &[chapter("datapath", Some(measured("datapath", true)))]).unwrap();
        assert!(page.contains("quick run"), "{page}");
    }
}
