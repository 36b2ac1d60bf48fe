//! A run's scores on its page: tables, bars with intervals, curves.

use serde::Serialize;

/// What stands above the studies.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Scores {
    /// Bars, a group a metric.
    pub bars: Vec<BarGroup>,
    /// How the intervals were made.
    pub intervals: String,
    /// Tables.
    pub tables: Vec<Table>,
    /// Training curves, a drawing a stage.
    pub curves: Vec<Curve>,
}

/// A metric in several runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BarGroup {
    /// The metric, with its convention.
    pub metric: String,
    /// Where the axis ends; it begins at 0.
    pub most: f64,
    /// A bar a run.
    pub bars: Vec<Bar>,
}

/// A run's value of a metric.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bar {
    /// The run.
    pub run: String,
    /// The value.
    pub value: f64,
    /// Its 95% interval.
    pub interval: [f64; 2],
    /// What it is above the first run, with the paired 95% interval; none for the first.
    pub difference: Option<(f64, [f64; 2])>,
}

/// A table.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// Column heads.
    pub header: Vec<String>,
    /// Cells, row by row.
    pub rows: Vec<Vec<String>>,
}

/// Training curves of a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// The stage.
    pub stage: String,
    /// The drawing, as SVG that this program drew.
    pub svg: String,
}
