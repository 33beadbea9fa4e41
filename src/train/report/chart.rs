//! Line and dot charts as SVG text. Pure functions of their data: the same chart is the same bytes.

#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::page::escape;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 46.0;
/// A curve of more points is thinned out: no screen shows more.
const MAX_POINTS: usize = 1000;
/// Up to so many points each has a dot that tells its values.
const MAX_DOTS: usize = 120;

/// How an axis counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    Linear,
    /// Values that are not positive are left out.
    Log,
}

/// One curve.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    /// For the legend; none where it is empty.
    pub(crate) name: String,
    /// 0: in the background; 1 to 3: a colour.
    pub(crate) colour: usize,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Series {
    pub(crate) fn new(name: &str, colour: usize, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.to_owned(), colour, points }
    }
}

/// A vertical line with a name.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) x: f64,
    pub(crate) label: String,
}

/// Curves over a common axis.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) series: Vec<Series>,
    pub(crate) mark: Option<Mark>,
    /// Of the y axis.
    pub(crate) scale: Scale,
}

/// Dots.
pub(crate) struct Scatter {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    /// x, y, and whether it stands out.
    pub(crate) points: Vec<(f64, f64, bool)>,
    pub(crate) x_scale: Scale,
    pub(crate) y_scale: Scale,
    /// Whether the line x = y is drawn, which needs axes of one range.
    pub(crate) diagonal: bool,
    /// Names of x = 0, 1, … instead of numbers.
    pub(crate) names: Vec<String>,
}

impl Chart {
    pub(crate) fn svg(&self) -> String {
        let sound = |(x, y): (f64, f64)| x.is_finite() && shows(self.scale, y);
        let series: Vec<Series> = self
            .series
            .iter()
            .map(|s| Series {
                points: thinned(s.points.iter().copied().filter(|&p| sound(p)).collect()),
                ..s.clone()
            })
            .filter(|s| !s.points.is_empty())
            .collect();
        let all = || series.iter().flat_map(|s| s.points.iter().copied());
        if all().next().is_none() {
            return empty(&self.title);
        }
        let whole = all().all(|(x, _)| x.fract() == 0.0);
        let x = Axis::of(all().map(|p| p.0), Scale::Linear, 0.0, whole);
        let y = Axis::of(all().map(|p| p.1), self.scale, 0.06, false);
        let mut svg = frame(&self.title, &self.x, &self.y, &x, &y, &[]);
        if let Some(mark) = &self.mark
            && (x.low..=x.high).contains(&mark.x)
        {
            let at = x.horizontal(mark.x);
            let (anchor, dx) = if at > WIDTH / 2.0 { ("end", -5.0) } else { ("start", 5.0) };
            push(
                &mut svg,
                format_args!(
                    "<line class=\"mark\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\"/>\
                     <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                    HEIGHT - BOTTOM,
                    at + dx,
                    TOP + 11.0,
                    escape(&mark.label)
                ),
            );
        }
        for s in &series {
            let place = |&(px, py): &(f64, f64)| format!("{:.1},{:.1}", x.horizontal(px), y.vertical(py));
            let path: Vec<String> = s.points.iter().map(place).collect();
            push(&mut svg, format_args!("<polyline class=\"c{}\" points=\"{}\"/>", s.colour, path.join(" ")));
            if s.points.len() <= MAX_DOTS && (s.colour > 0 || s.points.len() == 1) {
                for &(px, py) in &s.points {
                    let (at, up) = (x.horizontal(px), y.vertical(py));
                    let of = if s.name.is_empty() { String::new() } else { format!("{}, ", escape(&s.name)) };
                    let (px, py) = (number(px), number(py));
                    push(
                        &mut svg,
                        format_args!(
                            "<circle class=\"d{}\" cx=\"{at:.1}\" cy=\"{up:.1}\" r=\"2.6\"><title>{of}{} {px}: {py}</title></circle>",
                            s.colour,
                            escape(&self.x)
                        ),
                    );
                }
            }
        }
        legend(&mut svg, &series);
        svg + "</svg>"
    }
}

impl Scatter {
    pub(crate) fn svg(&self) -> String {
        let sound = |&&(x, y, _): &&(f64, f64, bool)| shows(self.x_scale, x) && shows(self.y_scale, y);
        let points: Vec<_> = self.points.iter().filter(sound).copied().collect();
        if points.is_empty() {
            return empty(&self.title);
        }
        let (mut xs, mut ys): (Vec<f64>, Vec<f64>) = points.iter().map(|p| (p.0, p.1)).unzip();
        if self.diagonal {
            xs.extend_from_slice(&ys);
            ys.clone_from(&xs);
        }
        let x = if self.names.is_empty() {
            Axis::of(xs.into_iter(), self.x_scale, 0.04, false)
        } else {
            Axis { low: -0.5, high: self.names.len() as f64 - 0.5, scale: Scale::Linear, ticks: Vec::new() }
        };
        let y = Axis::of(ys.into_iter(), self.y_scale, 0.06, false);
        let mut svg = frame(&self.title, &self.x, &self.y, &x, &y, &self.names);
        if self.diagonal {
            let (low, high) = (x.low.max(y.low), x.high.min(y.high));
            push(
                &mut svg,
                format_args!(
                    "<line class=\"mark\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
                    x.horizontal(low),
                    y.vertical(low),
                    x.horizontal(high),
                    y.vertical(high)
                ),
            );
        }
        let stride = points.len().div_ceil(4 * MAX_POINTS);
        for (px, py, bright) in points.into_iter().step_by(stride) {
            let named = self.names.get(px as usize).map_or_else(|| number(px), |name| escape(name));
            push(
                &mut svg,
                format_args!(
                    "<circle class=\"{}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{}\"><title>{named}: {}</title></circle>",
                    if bright { "d2" } else { "dot" },
                    x.horizontal(px),
                    y.vertical(py),
                    if bright { 5 } else { 3 },
                    number(py)
                ),
            );
        }
        svg + "</svg>"
    }
}

/// Writing to a String cannot fail.
fn push(svg: &mut String, text: std::fmt::Arguments<'_>) {
    let _ = svg.write_fmt(text);
}

fn shows(scale: Scale, v: f64) -> bool {
    v.is_finite() && (scale == Scale::Linear || v > 0.0)
}

fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let stride = points.len().div_ceil(MAX_POINTS).max(1);
    let last = points.last().copied();
    let mut kept: Vec<_> = points.into_iter().step_by(stride).collect();
    if kept.last().copied() != last {
        kept.extend(last);
    }
    kept
}

/// The range of an axis and the values it names.
struct Axis {
    low: f64,
    high: f64,
    scale: Scale,
    ticks: Vec<f64>,
}

impl Axis {
    /// Over all `values`, which must not be none, with some room at the ends.
    fn of(values: impl Iterator<Item = f64>, scale: Scale, room: f64, whole: bool) -> Axis {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            (low, high) = (low.min(value), high.max(value));
        }
        if scale == Scale::Log {
            let room = (high / low).powf(room).max(1.02);
            (low, high) = (low / room, high * room);
            return Axis { low, high, scale, ticks: log_ticks(low, high) };
        }
        let span = high - low;
        // Of a constant, or of values that differ in their last bits only.
        let flat = span <= 1e-9 * low.abs().max(high.abs());
        if flat {
            let half = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low, high) = if whole { (low - 1.0, high + 1.0) } else { (low - half, high + half) };
        } else {
            (low, high) = (low - room * span, high + room * span);
        }
        Axis { low, high, scale, ticks: linear_ticks(low, high, whole) }
    }

    /// Where `v` lies, from 0 to 1.
    fn share(&self, v: f64) -> f64 {
        match self.scale {
            Scale::Linear => (v - self.low) / (self.high - self.low),
            Scale::Log => (v / self.low).ln() / (self.high / self.low).ln(),
        }
    }

    fn horizontal(&self, v: f64) -> f64 {
        LEFT + self.share(v) * (WIDTH - LEFT - RIGHT)
    }

    fn vertical(&self, v: f64) -> f64 {
        HEIGHT - BOTTOM - self.share(v) * (HEIGHT - TOP - BOTTOM)
    }
}

/// Multiples of 1, 2 or 5 times a power of ten, about five of them.
fn linear_ticks(low: f64, high: f64, whole: bool) -> Vec<f64> {
    let raw = (high - low) / 5.0;
    let power = 10f64.powf(raw.log10().floor());
    let mut step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&s| s >= raw).unwrap_or(raw);
    if whole {
        step = step.max(1.0).round();
    }
    // A range so small beside its values that steps are lost has no ticks.
    if !step.is_finite() || step <= 0.0 || high + step == high {
        return Vec::new();
    }
    let first = (low / step).ceil();
    (0..12).map(|i| (first + f64::from(i)) * step).take_while(|&v| v <= high).collect()
}

fn log_ticks(low: f64, high: f64) -> Vec<f64> {
    let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
    let decades = last - first;
    let factors: &[f64] = if decades <= 2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let stride = (decades / 8).max(1) as usize;
    let all = (first..=last).step_by(stride).flat_map(|p| factors.iter().map(move |f| f * 10f64.powi(p)));
    all.filter(|v| (low..=high).contains(v)).collect()
}

/// Title, axes, grid and labels. `names` are the names of x = 0, 1, ….
fn frame(title: &str, x_label: &str, y_label: &str, x: &Axis, y: &Axis, names: &[String]) -> String {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\"><title>{title}</title>\
         <text class=\"title\" x=\"{LEFT}\" y=\"20\">{title}</text>",
        title = escape(title)
    );
    for &tick in &y.ticks {
        let at = y.vertical(tick);
        push(
            &mut svg,
            format_args!(
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\"/>\
                 <text class=\"label\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                number(tick)
            ),
        );
    }
    let numbers = x.ticks.iter().map(|&tick| (tick, number(tick)));
    let room = if names.len() > 6 { 8 } else { 16 };
    let named = names.iter().enumerate().map(|(i, name)| (i as f64, short(name, room)));
    for (tick, label) in numbers.chain(named) {
        let at = x.horizontal(tick);
        push(
            &mut svg,
            format_args!(
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\"/>\
                 <text class=\"label\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 16.0,
                escape(&label)
            ),
        );
    }
    let (middle_x, middle_y) = ((LEFT + right) / 2.0, (TOP + bottom) / 2.0);
    push(
        &mut svg,
        format_args!(
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\
             <text class=\"label\" x=\"{middle_x}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text class=\"label\" transform=\"translate(13 {middle_y}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 8.0,
            escape(x_label),
            escape(y_label)
        ),
    );
    svg
}

/// The names of curves, from the right of the title line to the left.
fn legend(svg: &mut String, series: &[Series]) {
    let named: Vec<&Series> = series.iter().filter(|s| !s.name.is_empty()).collect();
    if named.len() < 2 {
        return;
    }
    let mut right = WIDTH - RIGHT;
    for s in named.into_iter().rev() {
        // About the width of a character at this size.
        let left = right - 6.6 * s.name.chars().count() as f64;
        push(
            svg,
            format_args!(
                "<line class=\"c{}\" x1=\"{:.1}\" y1=\"16\" x2=\"{:.1}\" y2=\"16\"/>\
                 <text class=\"label\" x=\"{left:.1}\" y=\"20\">{}</text>",
                s.colour,
                left - 22.0,
                left - 5.0,
                escape(&s.name)
            ),
        );
        right = left - 36.0;
    }
}

fn empty(title: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\"><title>{title}</title>\
         <text class=\"title\" x=\"{LEFT}\" y=\"20\">{title}</text>\
         <text class=\"label\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">nothing to show</text></svg>",
        WIDTH / 2.0,
        HEIGHT / 2.0,
        title = escape(title)
    )
}

fn short(name: &str, room: usize) -> String {
    if name.chars().count() <= room {
        return name.to_owned();
    }
    name.chars().take(room - 1).chain(['…']).collect()
}

/// Four significant digits, without zeros at the end.
pub(crate) fn number(v: f64) -> String {
    if !v.is_finite() {
        return "–".to_owned();
    }
    if v == 0.0 || (v.fract() == 0.0 && v.abs() < 1e9) {
        return format!("{}", v as i64);
    }
    if !(1e-4..1e6).contains(&v.abs()) {
        let text = format!("{v:.3e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        let digits =
            if digits.contains('.') { digits.trim_end_matches('0').trim_end_matches('.') } else { digits };
        return format!("{digits}e{power}");
    }
    let decimals = (3 - v.abs().log10().floor() as i32).max(0) as usize;
    let text = format!("{v:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_right() {
        for (v, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (3.0, "3"),
            (0.97771, "0.9777"),
            (0.5, "0.5"),
            (0.1 + 0.2, "0.3"),
            (12345.678, "12346"),
            (-1.25, "-1.25"),
            (0.001, "0.001"),
            (0.00095, "0.00095"),
            (0.00012344, "0.0001234"),
            (0.000012344, "1.234e-5"),
            (1e-7, "1e-7"),
            (2.5e12, "2.5e12"),
            (f64::NAN, "–"),
            (f64::INFINITY, "–"),
        ] {
            assert_eq!(number(v), text);
        }
    }

    #[test]
    fn ticks_lie_in_the_range_and_are_round() {
        assert_eq!(linear_ticks(0.0, 1.0, false), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(linear_ticks(1.0, 3.0, true), [1.0, 2.0, 3.0]);
        assert_eq!(log_ticks(0.9e-4, 1.1e-1), [1e-4, 1e-3, 1e-2, 1e-1]);
        for (low, high) in [(-3.0, 7.5), (1e-12, 3e-12), (1e15, 1e15 + 64.0), (0.99, 0.991)] {
            let ticks = linear_ticks(low, high, false);
            assert!((2..=12).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            assert!(ticks.iter().all(|t| (low..=high).contains(t)), "{low} {high}: {ticks:?}");
        }
    }

    /// All coordinates of points and lines of a chart.
    fn coordinates(svg: &str) -> Vec<f64> {
        let mut found = Vec::new();
        for name in ["cx", "cy", "x1", "x2", "y1", "y2", "points"] {
            for (at, _) in svg.match_indices(&format!(" {name}=\"")) {
                let text = svg[at + name.len() + 3..].split('"').next().unwrap();
                found.extend(text.split([' ', ',']).map(|v| v.parse::<f64>().unwrap()));
            }
        }
        found
    }

    #[test]
    fn hard_data_is_drawn_within_the_frame() {
        let chart = |points: &[(f64, f64)], scale| Chart {
            title: "a < b & \"c\"".to_owned(),
            x: "epoch".to_owned(),
            y: "loss".to_owned(),
            series: vec![Series::new("a", 1, points.to_vec()), Series::new("b", 2, points.to_vec())],
            mark: Some(Mark { x: 1.0, label: "kept".to_owned() }),
            scale,
        };
        let many: Vec<(f64, f64)> = (0..5000).map(|i| (i as f64, (i as f64).sin())).collect();
        for points in [
            &[(1.0, 2.0)][..],
            &[(1.0, 0.0), (2.0, 0.0)],
            &[(1.0, 1e300), (2.0, -1e300)],
            &[(1.0, f64::NAN), (2.0, f64::INFINITY), (3.0, 1.0)],
            &[(1.0, f64::NAN)],
            &[],
            &many,
        ] {
            for scale in [Scale::Linear, Scale::Log] {
                let svg = chart(points, scale).svg();
                let inside = |v: &f64| v.is_finite() && (0.0..=WIDTH).contains(v);
                assert!(coordinates(&svg).iter().all(inside), "{points:?}: {svg}");
                assert!(!svg.contains("NaN") && !svg.contains("a < b"), "{svg}");
            }
        }
    }
}
