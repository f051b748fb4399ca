//! A table of contenders as bars, with one panel per column. The bars are drawn from the table itself, so that both agree.

use super::{
    plot::{COLOURS, INK, font},
    report::{Cell, Table},
    stats::{Summary, number},
};
use anyhow::{Result, anyhow};
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

/// The width of a panel, of the names in it, and of the figure after a bar.
const WIDTH: i32 = 470;
const NAMES: i32 = 170;
const FIGURES: i32 = 70;
/// The height of a bar with its gap, and of the room above the first bar.
const ROW: i32 = 24;
const HEAD: i32 = 40;
/// The colour of contenders other than bgctl.
const OTHERS: RGBColor = RGBColor(150, 150, 150);

/// The panels of the columns with figures; `None` if there are none.
pub(crate) fn svg(table: &Table) -> Result<Option<String>> {
    let panels: Vec<_> = (1..table.columns.len()).filter_map(|column| Panel::of(table, column)).collect();
    if panels.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&panels, &mut svg).map_err(|error| anyhow!("cannot draw {}: {error}", table.title))?;
    Ok(Some(svg))
}

/// A column, with the values of its rows.
struct Panel<'a> {
    title: &'a str,
    bars: Vec<(String, Summary)>,
}

impl<'a> Panel<'a> {
    fn of(table: &'a Table, column: usize) -> Option<Self> {
        let bar = |row: &Vec<Cell>| match row.get(column)? {
            Cell::Figure(figure) if figure.median.is_finite() => Some((row[0].to_string(), *figure)),
            _ => None,
        };
        let bars: Vec<_> = table.rows.iter().filter_map(bar).collect();
        // A column of nothing but zeros, as losses are, needs no picture.
        bars.iter().any(|(_, figure)| figure.high > 0.0).then(|| Self { title: &table.columns[column], bars })
    }

    fn height(&self) -> i32 {
        HEAD + ROW * self.bars.len() as i32 + 10
    }
}

fn draw(panels: &[Panel<'_>], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let rows: Vec<_> = panels.chunks(2).collect();
    let height_of = |row: &[Panel<'_>]| row.iter().map(Panel::height).max().unwrap_or(0);
    let width = WIDTH * panels.len().min(2) as i32;
    let height: i32 = rows.iter().map(|row| height_of(row)).sum();
    let root = SVGBackend::with_string(svg, (width as u32, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut top = 0;
    for row in rows {
        for (index, panel) in row.iter().enumerate() {
            draw_panel(panel, &root, (WIDTH * index as i32, top))?;
        }
        top += height_of(row);
    }
    root.present()?;
    Ok(())
}

fn draw_panel(
    panel: &Panel<'_>,
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    (left, top): (i32, i32),
) -> Result<(), Box<dyn std::error::Error>> {
    let longest = panel.bars.iter().map(|(_, figure)| figure.high).fold(f64::MIN_POSITIVE, f64::max);
    let from = left + NAMES;
    let at = |value: f64| from + (f64::from(WIDTH - NAMES - FIGURES) * value.max(0.0) / longest).round() as i32;
    area.draw(&Text::new(panel.title, (from, top + 14), font(15)))?;
    for (index, (name, figure)) in panel.bars.iter().enumerate() {
        let middle = top + HEAD + ROW * index as i32 + ROW / 2;
        let colour = if name.starts_with("ours") { COLOURS[0] } else { OTHERS };
        area.draw(&Rectangle::new([(from, middle - 8), (at(figure.median), middle + 8)], colour.filled()))?;
        area.draw(&PathElement::new([(at(figure.low), middle), (at(figure.high), middle)], INK.stroke_width(2)))?;
        let right = font(13).pos(Pos::new(HPos::Right, VPos::Center));
        area.draw(&Text::new(name.as_str(), (from - 8, middle), right))?;
        let end = at(figure.high.max(figure.median)) + 6;
        area.draw(&Text::new(number(figure.median), (end, middle), font(13).pos(Pos::new(HPos::Left, VPos::Center))))?;
    }
    area.draw(&PathElement::new([(from, top + HEAD), (from, top + panel.height() - 10)], INK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_drawn_of_what_has_figures() {
        let figure = |median: f64| Cell::Figure(Summary { median, low: median * 0.9, high: median * 1.2 });
        let row = |name: &str, cells: [Cell; 2]| [vec![name.into()], cells.into()].concat();
        let mut table = Table {
            title: "UDP packets".into(),
            about: String::new(),
            columns: ["through", "Mpps", "remark"].map(Into::into).into(),
            rows: vec![
                row("ours & XDP", [figure(3.7), "fast".into()]),
                row("nftables", [figure(0.83), Cell::Empty]),
                row("IPVS", [Cell::Empty, "not in this kernel".into()]),
            ],
        };
        let drawn = svg(&table).unwrap().unwrap();
        assert!(drawn.contains("ours &amp; XDP") && drawn.contains("0.830") && !drawn.contains("IPVS"), "{drawn}");
        assert!(!drawn.contains("remark") && !drawn.contains("NaN"), "{drawn}");
        table.rows.truncate(0);
        assert_eq!(svg(&table).unwrap(), None);
    }
}
