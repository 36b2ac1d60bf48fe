//! A comparison as one HTML file that needs nothing else.

use minijinja::{Environment, context};
use serde::Serialize;

use super::Comparison;
use crate::{Error, Result};

const TEMPLATE: &str = include_str!("page.html");

/// A score's bars: one a run, in percent of the widest interval of the row.
#[derive(Debug, Serialize)]
struct Chart {
    name: String,
    bars: Vec<Bar>,
}

#[derive(Debug, Serialize)]
struct Bar {
    run: String,
    label: String,
    width: f64,
    low: f64,
    high: f64,
}

impl Comparison {
    /// The page.
    pub fn html(&self, notice: &str) -> Result<String> {
        let fault = |e: minijinja::Error| Error::Invalid(format!("the page of the comparison could not be made: {e}"));
        let mut environment = Environment::new();
        environment.add_template("page.html", TEMPLATE).map_err(fault)?;
        let tables: Vec<_> = self.all_rows().into_iter().filter(|(_, (_, rows))| !rows.is_empty()).collect();
        let tables: Vec<_> = tables.into_iter().map(|(caption, (header, rows))| context! { caption, header, rows }).collect();
        let page = environment.get_template("page.html").map_err(fault)?;
        page.render(context! { method => self.method(), notice, charts => self.charts(), tables }).map_err(fault)
    }

    /// Charts of the tested scores and of the findings.
    fn charts(&self) -> Vec<Chart> {
        let tested = |name: &str| self.differences.iter().any(|difference| difference.metric == name);
        let of_metrics = self.metrics.iter().filter(|row| tested(&row.name)).filter_map(|row| {
            let values = row.values.iter().copied().collect::<Option<Vec<f64>>>()?;
            Some(self.chart(&row.name, &values, row.intervals.as_ref()?))
        });
        let of_findings = self.findings.iter().map(|row| {
            let values: Vec<f64> = row.scores.iter().map(|scores| scores.f1).collect();
            self.chart(&format!("{} (F1, {} studies)", row.name, row.support), &values, &row.intervals)
        });
        of_metrics.chain(of_findings).collect()
    }

    fn chart(&self, name: &str, values: &[f64], intervals: &[[f64; 2]]) -> Chart {
        let widest = intervals.iter().map(|[_, high]| *high).fold(1e-12, f64::max);
        let percent = |value: f64| (100.0 * value / widest).clamp(0.0, 100.0);
        let bar = |((run, value), [low, high]): ((&String, &f64), &[f64; 2])| Bar {
            run: run.clone(),
            label: format!("{value:.4} [{low:.4}, {high:.4}]"),
            width: percent(*value),
            low: percent(*low),
            high: percent(*high),
        };
        Chart { name: name.to_string(), bars: self.runs.iter().zip(values).zip(intervals).map(bar).collect() }
    }
}
