//! A comparison as tables: for a terminal, Markdown, LaTeX.

use std::fmt;

use comfy_table::{ContentArrangement, Table, presets};

use super::Comparison;

/// Header and rows.
pub(super) type Rows = (Vec<String>, Vec<Vec<String>>);

fn with_interval(value: f64, [low, high]: [f64; 2]) -> String {
    format!("{value:.4} [{low:.4}, {high:.4}]")
}

fn short(sha256: &str) -> String {
    sha256.chars().take(12).collect()
}

fn p_value(p: f64) -> String {
    if p < 0.001 { format!("{p:.1e}") } else { format!("{p:.3}") }
}

impl Comparison {
    /// Header and rows of the table of metrics: value and 95% interval.
    pub fn metric_rows(&self) -> Rows {
        let header = [vec!["metric".to_string()], self.runs.clone()].concat();
        let row = |row: &super::MetricRow| {
            let cell = |run: usize| match (row.values[run], &row.intervals) {
                (Some(value), Some(intervals)) => with_interval(value, intervals[run]),
                (Some(value), None) => format!("{value:.4}"),
                (None, _) => "-".to_string(),
            };
            [vec![row.name.clone()], (0..self.runs.len()).map(cell).collect()].concat()
        };
        (header, self.metrics.iter().map(row).collect())
    }

    /// Header and rows of the table of findings: F1 and its 95% interval.
    pub fn finding_rows(&self) -> Rows {
        let header = [vec!["finding (F1)".to_string(), "studies".to_string()], self.runs.clone()].concat();
        let row = |row: &super::FindingRow| {
            let cells = row.scores.iter().zip(&row.intervals);
            let cells = cells.map(|(scores, [low, high])| format!("{:.3} [{low:.3}, {high:.3}]", scores.f1));
            [vec![row.name.clone(), row.support.to_string()], cells.collect()].concat()
        };
        (header, self.findings.iter().map(row).collect())
    }

    /// Header and rows of the table of differences.
    pub fn difference_rows(&self) -> Rows {
        let first = self.runs.first().map_or("the first", String::as_str);
        let header = [format!("run minus {first}"), "metric".to_string(), "difference".to_string(), "95% interval".to_string()];
        let header = [&header[..], &["p", "p (Holm)", "wins / ties / losses"].map(String::from)].concat();
        let row = |d: &super::Difference| {
            let [wins, ties, losses] = d.wins_ties_losses;
            vec![
                d.run.clone(),
                d.metric.clone(),
                format!("{:+.4}", d.difference),
                format!("{:+.4} to {:+.4}", d.interval[0], d.interval[1]),
                p_value(d.p),
                p_value(d.p_holm),
                format!("{wins} / {ties} / {losses}"),
            ]
        };
        (header, self.differences.iter().map(row).collect())
    }

    /// Header and rows of what is known of the runs: speed, memory, hashes, who labelled, with what.
    pub fn fact_rows(&self) -> Rows {
        let header = [vec!["run".to_string()], self.runs.clone()].concat();
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut add = |name: &str, cell: &dyn Fn(&super::RunFacts) -> Option<String>| {
            let cells: Vec<Option<String>> = self.facts.iter().map(cell).collect();
            if cells.iter().any(Option::is_some) {
                rows.push([vec![name.to_string()], cells.into_iter().map(|cell| cell.unwrap_or("-".to_string())).collect()].concat());
            }
        };
        add("tokens a second", &|run| Some(format!("{:.1}", run.writing.as_ref()?.tokens_per_second)));
        let drafting = |run: &super::RunFacts| run.writing.as_ref()?.drafting.clone();
        add("tokens a pass", &|run| Some(format!("{:.2}", drafting(run)?.tokens_per_pass)));
        add("guessed tokens accepted", &|run| Some(format!("{:.3}", drafting(run)?.acceptance)));
        add("peak memory while writing, MiB", &|run| Some(run.writing.as_ref()?.peak_memory_mib?.to_string()));
        add("studies evaluated", &|run| Some(run.studies.to_string()));
        add("split (sha256)", &|run| Some(short(&run.split_sha256)));
        add("references (sha256)", &|run| Some(short(&run.references_sha256)));
        let files: std::collections::BTreeSet<&String> = self.facts.iter().flat_map(|run| run.weights.keys()).collect();
        for file in files {
            add(&format!("{file} (sha256)"), &|run| run.weights.get(file).map(|hash| short(hash)));
        }
        add("labeller", &|run| Some(run.labeller.clone()));
        let instruments: std::collections::BTreeSet<&String> = self.facts.iter().flat_map(|run| run.instruments.keys()).collect();
        for instrument in instruments {
            add(instrument, &|run| run.instruments.get(instrument).cloned());
        }
        (header, rows)
    }

    /// The table of differences alone, for a terminal: what one change to a run costs.
    pub fn drop_table(&self) -> String {
        let (header, rows) = self.difference_rows();
        format!("{}\n{}", self.method(), terminal(header, rows))
    }

    /// How the numbers were made, in one sentence.
    pub fn method(&self) -> String {
        let how = &self.comparing;
        format!(
            "{} studies; 95% intervals: paired bootstrap over studies, {} samples; p: paired permutation test, {} permutations, two-sided; Holm's correction over the {} tests; seed {}.",
            self.studies,
            how.draws,
            how.permutations,
            self.differences.len(),
            how.seed
        )
    }

    pub(super) fn all_rows(&self) -> [(&'static str, Rows); 4] {
        [
            ("Scores", self.metric_rows()),
            ("Differences", self.difference_rows()),
            ("F1 a finding", self.finding_rows()),
            ("Runs", self.fact_rows()),
        ]
    }

    /// The tables as Markdown.
    pub fn markdown(&self) -> String {
        let table = |(_, (header, rows)): &(&str, Rows)| {
            let line =
                |cells: &[String]| format!("| {} |\n", cells.iter().map(|cell| cell.replace('|', "\\|")).collect::<Vec<_>>().join(" | "));
            let rule = format!("|{}\n", "---|".repeat(header.len()));
            format!("{}{rule}{}", line(header), rows.iter().map(|row| line(row)).collect::<String>())
        };
        let tables = self.all_rows().iter().filter(|(_, (_, rows))| !rows.is_empty()).map(table).collect::<Vec<_>>();
        format!("{}\n\n{}", self.method(), tables.join("\n"))
    }

    /// The tables as LaTeX (`booktabs`).
    pub fn latex(&self) -> String {
        let table = |(caption, (header, rows)): &(&str, Rows)| {
            let line = |cells: &[String]| format!("{} \\\\\n", cells.iter().map(|cell| escaped(cell)).collect::<Vec<_>>().join(" & "));
            format!(
                "\\begin{{table}}\n\\caption{{{caption}. {}}}\n\\begin{{tabular}}{{l{}}}\n\\toprule\n{}\\midrule\n{}\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n",
                escaped(&self.method()),
                "r".repeat(header.len() - 1),
                line(header),
                rows.iter().map(|row| line(row)).collect::<String>()
            )
        };
        self.all_rows().iter().filter(|(_, (_, rows))| !rows.is_empty()).map(table).collect::<Vec<_>>().join("\n")
    }
}

fn terminal(header: Vec<String>, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header).add_rows(rows).to_string()
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '_' | '%' | '&' | '#' | '$' | '{' | '}' => escaped.extend(['\\', c]),
            c => escaped.push(c),
        }
    }
    escaped
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.method())?;
        for (_, (header, rows)) in self.all_rows() {
            write!(f, "\n{}", terminal(header, rows))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn latexs_own_characters_are_escaped() {
        assert_eq!(super::escaped("bleu_4 95% a&b {x}\\"), "bleu\\_4 95\\% a\\&b \\{x\\}\\textbackslash{}");
    }
}
