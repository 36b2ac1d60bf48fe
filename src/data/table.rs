//! CSV files by their columns' names.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use csv::StringRecord;

use crate::{Error, Result};

/// A row: some columns' cells by the columns' names.
pub(super) type Row = HashMap<&'static str, String>;

/// What a CSV file gave.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// Rows by the first column, in order.
    pub(super) rows: BTreeMap<String, Row>,
    /// Rows that cannot be read or come twice: where, and why.
    pub(super) unreadable: Vec<(String, String)>,
}

impl Table {
    /// The rows of a CSV by the first of `columns`. An unreadable row is left out and named; a missing column is an error; a missing cell of an
    /// `optional` column is empty.
    pub(super) fn read(path: &Path, columns: &[&'static str], optional: &[&'static str]) -> Result<Self> {
        let mut table = Table::default();
        for (line, row) in rows(path, columns, optional)? {
            let place = || format!("{}: row {line}", path.display());
            match row {
                Err(why) => table.unreadable.push((place(), why)),
                Ok(row) => {
                    let name = row[columns[0]].trim().to_string();
                    if table.rows.get(&name).is_some_and(|earlier| *earlier != row) {
                        table.unreadable.push((place(), format!("{name} comes twice, with other cells; the first row counts")));
                    }
                    table.rows.entry(name).or_insert(row);
                }
            }
        }
        Ok(table)
    }

    /// As [`Table::read`], or no rows where there is no file.
    pub(super) fn read_if_there(path: &Path, columns: &[&'static str]) -> Result<Self> {
        if path.is_file() { Table::read(path, columns, &[]) } else { Ok(Table::default()) }
    }
}

/// Each row with its line's number, or what is wrong with it.
pub(super) type Rows = Vec<(usize, std::result::Result<Row, String>)>;

/// The rows in the file's order.
pub(super) fn rows(path: &Path, columns: &[&'static str], optional: &[&'static str]) -> Result<Rows> {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_path(path).map_err(|e| Error::file(path, e.to_string()))?;
    let header = reader.headers().map_err(|e| Error::file(path, e.to_string()))?.clone();
    let find = |column: &str| header.iter().position(|name| name.trim_start_matches('\u{feff}').trim() == column);
    let absent = |column: &&&'static str| find(column).is_none();
    if let Some(column) = columns.iter().find(absent) {
        return Err(Error::field(path, *column, format!("no such column; found {}", header.iter().collect::<Vec<_>>().join(", "))));
    }
    let positions: Vec<(&'static str, usize)> =
        columns.iter().chain(optional).filter_map(|column| Some((*column, find(column)?))).collect();
    let row = |record: std::result::Result<StringRecord, csv::Error>| {
        let record = record.map_err(|e| e.to_string())?;
        let cell = |at: usize| record.get(at).map(String::from).ok_or(format!("{} cells, expected {}", record.len(), header.len()));
        positions.iter().map(|(column, at)| Ok((*column, cell(*at)?))).collect()
    };
    Ok(reader.records().enumerate().map(|(index, record)| (index + 2, row(record))).collect())
}

/// The 18 labels of a row.
pub(super) fn labels(row: &Row) -> [bool; 18] {
    std::array::from_fn(|index| matches!(row[crate::text::FINDINGS[index]].trim(), "1" | "1.0"))
}
