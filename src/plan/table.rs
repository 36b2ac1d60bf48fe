//! A plan as text.

use std::fmt;

use comfy_table::{CellAlignment, Table, presets};

use super::{Plan, Stage};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.assumptions.iter().try_for_each(|line| writeln!(f, "{line}"))?;
        let machine = &self.machine;
        let memory = machine.memory_bytes.map_or(String::new(), |bytes| format!(", {} of memory", size(bytes)));
        writeln!(
            f,
            "measured here, {} threads: products {:.0} GFLOP/s in bf16, {:.0} in f32; memory read at {:.1} GB/s, scans prepared at {:.0} million voxels/s{memory}",
            machine.threads,
            machine.bf16_per_s / 1e9,
            machine.f32_per_s / 1e9,
            machine.read_per_s / 1e9,
            machine.voxels_per_s / 1e6
        )?;
        let names: Vec<String> = self.accelerators.iter().map(|one| format!("{}, predicted", one.name)).collect();
        let mut table = Table::new();
        let heads = ["stage", "disk", "memory", "PFLOP", "time here, computed", "GPU memory, computed"].map(String::from);
        table.load_preset(presets::UTF8_BORDERS_ONLY).set_header(heads.into_iter().chain(names));
        self.stages.iter().for_each(|stage| {
            table.add_row(self.row(stage));
        });
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        writeln!(f, "{table}")?;
        self.shortages.iter().try_for_each(|line| writeln!(f, "too little: {line}"))?;
        write!(f, "Nothing has run on a GPU: its memory is computed, its hours are predicted (docs/cuda.md).")
    }
}

impl Plan {
    fn row(&self, stage: &Stage) -> Vec<String> {
        let device = if stage.device_bytes == 0 { "-".to_string() } else { size(stage.device_bytes) };
        let own = [
            stage.name.clone(),
            size(stage.disk_bytes),
            size(stage.memory_bytes),
            format!("{:.3}", stage.operations / 1e15),
            time(stage.hours),
            device,
        ];
        let predicted = self.accelerators.iter().map(|one| match stage.device_bytes {
            0 => "-".to_string(),
            bytes if bytes > one.memory_bytes => "does not fit".to_string(),
            _ => time(one.hours(stage.operations, stage.bf16, stage.reads)),
        });
        own.into_iter().chain(predicted).collect()
    }
}

fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes >= 1e12 => format!("{:.2} TB", bytes / 1e12),
        bytes if bytes >= 1e9 => format!("{:.1} GB", bytes / 1e9),
        bytes => format!("{:.0} MB", bytes / 1e6),
    }
}

fn time(hours: f64) -> String {
    match hours {
        hours if hours >= 72.0 => format!("{:.0} days", hours / 24.0),
        hours if hours >= 1.0 => format!("{hours:.1} h"),
        hours if hours * 60.0 >= 1.0 => format!("{:.0} min", hours * 60.0),
        hours => format!("{:.0} s", hours * 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_the_unit_that_reads_best() {
        assert_eq!([2_500_000, 13_476_000_000, 1_690_000_000_000].map(size), ["2 MB", "13.5 GB", "1.69 TB"]);
        assert_eq!([0.005, 0.5, 30.0, 480.0].map(time), ["18 s", "30 min", "30.0 h", "20 days"]);
    }
}
