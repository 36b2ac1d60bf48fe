//! `curves.svg`: a stage's numbers over its steps, drawn from `metrics.jsonl`.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use serde_json::Value;

use crate::{Error, Result};

/// Points (step, value) under a name.
#[derive(Debug, Clone, PartialEq)]
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Series that share axes.
#[derive(Debug)]
struct Panel {
    title: &'static str,
    logarithmic: bool,
    series: Vec<Series>,
}

/// Okabe and Ito's colours, which colour-blind eyes tell apart; the last ones for a tenth structure.
const COLOURS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(60, 60, 60),
    RGBColor(150, 110, 60),
    RGBColor(120, 90, 200),
    RGBColor(170, 170, 60),
];
const PANEL: (u32, u32) = (560, 320);
/// For the series' names.
const NAMES: u32 = 132;
const HEADING: u32 = 36;
/// Up to so many points are marked one by one.
const MARKED: usize = 25;

/// The curves of `stage`, from the lines of its `metrics.jsonl`.
pub fn draw_curves(stage: &str, lines: &[Value]) -> Result<String> {
    let panels = panels(lines);
    let rows = panels.len().div_ceil(2).max(1);
    let mut svg = String::new();
    draw(&mut svg, stage, &panels, rows).map_err(|e| Error::Invalid(format!("curves.svg: {e}")))?;
    Ok(svg)
}

/// What there is to show; a panel without a point is left out.
fn panels(lines: &[Value]) -> Vec<Panel> {
    let (watched, trained): (Vec<&Value>, Vec<&Value>) = lines.iter().partition(|line| line.get("validation").is_some());
    let named = |lines: &[&Value], names: &[(&str, &str)]| -> Vec<Series> {
        names.iter().map(|(key, name)| Series { name: name.to_string(), points: points(lines, |line| line.get(*key)) }).collect()
    };
    let inside = |lines: &[&Value], object: &str| -> Vec<Series> {
        let keys = lines.iter().find_map(|line| line.get(object)?.as_object());
        let keys = keys.into_iter().flat_map(|object| object.keys());
        keys.map(|key| Series { name: key.clone(), points: points(lines, |line| line.get(object)?.get(key)) }).collect()
    };
    let panel = |title: &'static str, logarithmic: bool, series: Vec<Series>| Panel { title, logarithmic, series };
    let mut loss = named(&trained, &[("loss", "training")]);
    loss.extend(named(&watched, &[("validation_loss", "validation")]));
    let mut norms = named(&trained, &[("gradient_norm", "all")]);
    norms.extend(inside(&trained, "gradient_norms"));
    let speed = [("tokens_per_second", "tokens/s"), ("studies_per_second", "studies/s")];
    let recalls = [("retrieval_recall_at_1", "R@1"), ("retrieval_recall_at_5", "R@5"), ("retrieval_recall_at_10", "R@10")];
    let collapse = [
        ("collapse.unique_share", "unique"),
        ("collapse.self_bleu_4", "self-BLEU-4"),
        ("collapse.all_normal_share", "all normal"),
        ("labels.f1.macro_supported", "macro F1"),
        ("labels.recall.rare", "recall of rare findings"),
    ];
    let mut panels = vec![
        panel("Loss", false, loss),
        panel("Learning rate", false, named(&trained, &[("learning_rate", "")])),
        panel("Gradient norm before clipping", true, norms),
        panel("Throughput", false, named(&trained, &speed)),
        panel("Report-to-volume recall, validation", false, named(&watched, &recalls)),
        panel("Mean cosine in the queue", false, inside(&watched, "queue_similarity_by_structure")),
        panel("Entropy of soft targets (nats)", false, inside(&watched, "target_entropy_by_structure")),
        panel("Written reports, validation", false, named(&watched, &collapse)),
    ];
    for panel in &mut panels {
        let logarithmic = panel.logarithmic;
        panel.series.iter_mut().for_each(|series| series.points.retain(|(_, value)| !logarithmic || *value > 0.0));
        panel.series.retain(|series| !series.points.is_empty());
    }
    panels.retain(|panel| !panel.series.is_empty());
    panels
}

fn points<'a>(lines: &[&'a Value], value: impl Fn(&'a Value) -> Option<&'a Value>) -> Vec<(f64, f64)> {
    let point = |line: &&'a Value| Some((line.get("step")?.as_f64()?, value(line)?.as_f64()?));
    lines.iter().filter_map(point).collect()
}

type Outcome<'a> = std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw<'a>(svg: &'a mut String, stage: &str, panels: &[Panel], rows: usize) -> Outcome<'a> {
    let size = (2 * PANEL.0, HEADING + rows as u32 * PANEL.1);
    let whole = SVGBackend::with_string(svg, size).into_drawing_area();
    whole.fill(&WHITE)?;
    let (heading, body) = whole.split_vertically(HEADING);
    heading.draw(&Text::new(stage.to_string(), (16, 10), ("sans-serif", 20)))?;
    for (area, panel) in body.split_evenly((rows, 2)).iter().zip(panels) {
        draw_panel(area, panel)?;
    }
    whole.present()
}

fn draw_panel<'a>(area: &Area<'a>, panel: &Panel) -> Outcome<'a> {
    let alone = panel.series.len() == 1;
    let (area, names) = area.split_horizontally(if alone { PANEL.0 } else { PANEL.0 - NAMES });
    if !alone {
        draw_names(&names, panel)?;
    }
    let values = |which: fn(&(f64, f64)) -> f64| panel.series.iter().flat_map(move |series| series.points.iter().map(which));
    let (first, last) = bounds(values(|point| point.0));
    let (low, high) = bounds(values(|point| point.1));
    let steps = if first < last { first..last } else { first - 1.0..first + 1.0 };
    // below two powers of ten a logarithmic axis has no room for its labels
    if panel.logarithmic && high > 30.0 * low {
        return draw_axes(&area, panel, steps, (low * 0.9..high * 1.1).log_scale());
    }
    let room = if low < high { 0.06 * (high - low) } else { 0.5 * high.abs().max(1e-6) };
    draw_axes(&area, panel, steps, low - room..high + room)
}

fn draw_axes<'a, Y>(area: &Area<'a>, panel: &Panel, steps: std::ops::Range<f64>, values: Y) -> Outcome<'a>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 15))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(58)
        .build_cartesian_2d(steps, values)?;
    chart
        .configure_mesh()
        .x_labels(6)
        .y_labels(6)
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .axis_style(RGBColor(120, 120, 120))
        .label_style(("sans-serif", 11))
        .x_label_formatter(&|step| format!("{step:.0}"))
        .y_label_formatter(&|value| short(*value))
        .draw()?;
    for (index, series) in panel.series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        chart.draw_series(LineSeries::new(series.points.iter().copied(), colour.stroke_width(2)))?;
        if series.points.len() <= MARKED {
            chart.draw_series(series.points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        }
    }
    Ok(())
}

/// The series' names beside the axes, where they hide no point.
fn draw_names<'a>(area: &Area<'a>, panel: &Panel) -> Outcome<'a> {
    for (index, series) in panel.series.iter().enumerate() {
        let (colour, y) = (COLOURS[index % COLOURS.len()], 44 + 18 * index as i32);
        area.draw(&Rectangle::new([(0, y), (14, y + 3)], colour.filled()))?;
        area.draw(&Text::new(series.name.clone(), (20, y - 4), ("sans-serif", 11)))?;
    }
    Ok(())
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

/// A value in a few characters.
fn short(value: f64) -> String {
    let size = value.abs();
    match () {
        () if size < 1e-12 => "0".to_string(),
        () if !(1e-3..1e4).contains(&size) => format!("{value:.1e}"),
        () if size >= 100.0 => format!("{value:.0}"),
        () if size >= 1.0 => format!("{value:.2}"),
        () => format!("{value:.4}").trim_end_matches('0').to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Lines drawn as series: axes are thinner.
    fn polylines(svg: &str) -> usize {
        svg.lines().filter(|line| line.contains("<polyline") && line.contains("stroke-width=\"2\"")).count()
    }

    fn line(step: u64, loss: f64) -> Value {
        json!({ "step": step, "loss": loss, "learning_rate": 1e-3, "gradient_norm": 2.0, "gradient_norms": { "head": 1.0, "vision": 0.0 } })
    }

    fn watched(step: u64) -> Value {
        json!({ "step": step, "validation": true, "validation_loss": 2.5, "retrieval_recall_at_1": 0.25, "queue_similarity_by_structure": { "lung": 0.3, "heart & vessels": null } })
    }

    #[test]
    fn the_picture_is_well_formed_and_has_a_line_a_series() {
        let lines = [line(1, 3.0), line(2, 2.0), watched(2), line(3, 1.5), line(4, 1.0), watched(4)];
        let svg = draw_curves("structure <1>", &lines).unwrap();
        // loss and validation loss, rate, all norms and the head's (the vision's is zero), R@1, one structure's similarity
        assert_eq!(panels(&lines).iter().map(|panel| panel.series.len()).sum::<usize>(), 7);
        assert_eq!(polylines(&svg), 7);
        well_formed(&svg);
    }

    #[test]
    fn one_point_and_none_are_drawn_without_fault() {
        let svg = draw_curves("llama", &[line(5, f64::NAN)]).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        well_formed(&svg);
        well_formed(&draw_curves("llama", &[]).unwrap());
    }

    /// Every element is closed by its own name, attributes and text hold no bare < or &.
    fn well_formed(svg: &str) {
        let mut open: Vec<&str> = Vec::new();
        for (index, part) in svg.split('<').enumerate().skip(1) {
            let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("tag {index} is not closed: {part}"));
            let entity = |rest: &str| ["amp;", "lt;", "gt;", "quot;", "apos;", "#"].iter().any(|known| rest.starts_with(known));
            assert!(part.split('&').skip(1).all(entity), "a bare & in {part}");
            assert_eq!(tag.matches('"').count() % 2, 0, "a quote is open in {tag}");
            match (tag.strip_prefix('/'), tag.ends_with('/') || tag.starts_with(['?', '!'])) {
                (Some(name), _) => assert_eq!(open.pop(), Some(name)),
                (None, true) => {}
                (None, false) => open.push(tag.split_whitespace().next().unwrap()),
            }
            assert!(open.last() == Some(&"text") || text.trim().is_empty(), "text outside of an element: {text}");
        }
        assert!(open.is_empty() && svg.starts_with("<svg"), "{open:?} are not closed");
    }
}
