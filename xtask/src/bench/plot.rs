//! Plots as SVG, with a background, so that they can be read on a light and on a dark page.

use super::report::{Axis, Plot, Series};
use anyhow::{Result, anyhow};
use plotters::{
    coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter},
    prelude::*,
};
use std::ops::Range;

/// The size of the plot without its legend, which is on the right.
const SIZE: (u32, u32) = (670, 460);
/// The height of a line of the legend, and the position of the first line.
const LEGEND: (i32, i32) = (22, 64);
pub(crate) const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(224, 224, 224);
/// The colours of Okabe and Ito, which colour-blind people can distinguish, without the yellow, which is too light on white.
pub(crate) const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];

/// A line with more points than this is drawn without marks.
const MARKED: usize = 30;

/// The font of all plots.
pub(crate) fn font(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK)
}

/// Draws a plot.
pub(crate) fn svg(plot: &Plot) -> Result<String> {
    let mut svg = String::new();
    draw(plot, &mut svg).map_err(|error| anyhow!("cannot draw {}: {error}", plot.name))?;
    Ok(svg)
}

fn draw(plot: &Plot, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let points = || plot.series.iter().flat_map(|series| &series.points);
    let x = Scale::over(&plot.x, points().map(|(x, _)| *x));
    let y = Scale::over(&plot.y, points().flat_map(|(_, y)| [y.low, y.median, y.high]));
    let longest = plot.series.iter().map(|series| series.name.chars().count()).max().unwrap_or(0);
    let entries = plot.series.len() as i32;
    // There is no font to measure by: a letter of this size is about so wide.
    let size = (SIZE.0 + 50 + 15 * longest as u32 / 2, SIZE.1.max((2 * LEGEND.1 + LEGEND.0 * entries) as u32));
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, legend) = root.split_horizontally(SIZE.0);
    let mut chart = ChartBuilder::on(&left)
        .caption(&plot.title, font(19))
        .margin(14)
        .x_label_area_size(46)
        .y_label_area_size(66)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .label_style(font(14))
        .axis_desc_style(font(15))
        .x_desc(&plot.x.label)
        .y_desc(&plot.y.label)
        .draw()?;
    for (index, Series { points, .. }) in plot.series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let line = colour.stroke_width(2);
        let median = points.iter().map(|(at, figure)| (*at, figure.median));
        chart.draw_series([PathElement::new(median.clone().collect::<Vec<_>>(), line)])?;
        if points.len() > MARKED {
            continue;
        }
        chart.draw_series(median.map(|at| Circle::new(at, 4, colour.filled())))?;
        let spread = points.iter().map(|(at, figure)| [(*at, figure.low), (*at, figure.high)]);
        chart.draw_series(spread.map(|spread| PathElement::new(spread, line)))?;
    }
    for (index, series) in plot.series.iter().enumerate() {
        let (colour, height) = (COLOURS[index % COLOURS.len()], LEGEND.1 + LEGEND.0 * index as i32);
        legend.draw(&PathElement::new([(0, height), (22, height)], colour.stroke_width(2)))?;
        if series.points.len() <= MARKED {
            legend.draw(&Circle::new((11, height), 4, colour.filled()))?;
        }
        legend.draw(&Text::new(series.name.as_str(), (30, height - 7), font(14)))?;
    }
    root.present()?;
    Ok(())
}

/// An axis from its first to its last mark.
#[derive(Debug)]
struct Scale {
    logarithmic: bool,
    marks: Vec<f64>,
}

impl Scale {
    fn over(axis: &Axis, values: impl Iterator<Item = f64>) -> Self {
        let drawable = |value: &f64| value.is_finite() && (!axis.logarithmic || *value > 0.0);
        let ends = values.filter(drawable).fold(None, |ends: Option<[f64; 2]>, value| match ends {
            Some([low, high]) => Some([low.min(value), high.max(value)]),
            None => Some([value, value]),
        });
        let [low, high] = ends.unwrap_or([1.0, 10.0]);
        if axis.logarithmic { Self::decades(low, high) } else { Self::linear(low, high) }
    }

    /// A logarithmic axis, from a power of ten to a power of ten, or between marks at 1, 2 and 5 if that saves room.
    fn decades(low: f64, high: f64) -> Self {
        let steps: &[f64] = if high / low > 100.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let marks: Vec<_> =
            decades.flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade))).collect();
        let first = marks.iter().rposition(|mark| *mark <= low).unwrap_or(0);
        let last = marks.iter().position(|mark| *mark >= high).unwrap_or(marks.len() - 1).max(first + 1);
        Self { logarithmic: true, marks: marks[first..=last.min(marks.len() - 1)].to_vec() }
    }

    /// A linear axis from zero, since ratios count, or from below it, with about six marks at 1, 2 or 5 times a power of ten.
    fn linear(low: f64, high: f64) -> Self {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let span = if high > low { high - low } else { 1.0 };
        let power = 10_f64.powf((span / 6.0).log10().floor());
        let step = [1.0, 2.0, 5.0].map(|step| step * power).into_iter().find(|step| span / step <= 6.0);
        let step = step.unwrap_or(10.0 * power);
        let (first, last) = ((low / step).floor() as i64, ((low + span) / step).ceil() as i64);
        Self { logarithmic: false, marks: (first..=last).map(|mark| mark as f64 * step).collect() }
    }

    /// The position of a value on a linear scale.
    fn at(&self, value: f64) -> f64 {
        // What has no logarithm stands at the beginning of the axis.
        if self.logarithmic { value.max(self.marks[0]).log10() } else { value }
    }
}

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let Range { start, end } = self.range();
        let share = (self.at(*value) - self.at(start)) / (self.at(end) - self.at(start));
        from + (f64::from(to - from) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.marks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.marks[0]..self.marks[self.marks.len() - 1]
    }
}

impl ValueFormatter<f64> for Scale {
    fn format(value: &f64) -> String {
        short(*value)
    }
}

/// A figure in the form for an axis: 250k, 0.05.
fn short(value: f64) -> String {
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    // What is nearly a thousand is one: marks are sums and powers.
    let (scale, unit) = units.into_iter().find(|(scale, _)| value.abs() >= scale * 0.999_999).unwrap_or((1.0, ""));
    let shown = format!("{:.6}", value / scale);
    let shown = shown.trim_end_matches('0').trim_end_matches('.');
    format!("{}{unit}", if shown == "-0" { "0" } else { shown })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::stats::Summary;

    fn plot(x: bool, y: bool, points: &[(f64, f64)]) -> Plot {
        let of = |median: f64| Summary { median, low: median * 0.9, high: median * 1.1 };
        let axis = |label: &str, logarithmic| Axis { label: label.into(), logarithmic };
        Plot {
            name: "test".into(),
            title: "Title & more".into(),
            x: axis("open flows", x),
            y: axis("ns", y),
            series: vec![Series { name: "ours".into(), points: points.iter().map(|(x, y)| (*x, of(*y))).collect() }],
        }
    }

    #[test]
    fn whatever_was_measured_can_be_drawn() {
        let samples: [&[(f64, f64)]; 4] =
            [&[], &[(1.0, 40.0)], &[(0.0, 0.0), (1.0, -3.0)], &[(1.0, 86.0), (1e6, 340.0)]];
        for points in samples {
            for (x, y) in [(false, false), (true, false), (false, true), (true, true)] {
                let svg = svg(&plot(x, y, points)).unwrap();
                assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
                assert!(svg.contains("Title &amp; more") && !svg.contains("NaN"), "{points:?}: {svg}");
            }
        }
    }

    #[test]
    fn marks_are_round_and_enclose_what_is_drawn() {
        let marks = |scale: Scale| scale.marks.iter().map(|mark| short(*mark)).collect::<Vec<_>>().join(" ");
        assert_eq!(marks(Scale::linear(80.0, 341.0)), "0 100 200 300 400");
        assert_eq!(marks(Scale::linear(0.86, 1.02)), "0 0.2 0.4 0.6 0.8 1 1.2");
        assert_eq!(marks(Scale::decades(1.0, 4_194_304.0)), "1 10 100 1k 10k 100k 1M 10M");
        assert_eq!(marks(Scale::decades(3.0, 40.0)), "2 5 10 20 50");
    }
}
