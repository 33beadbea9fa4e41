//! [`Preparation`]: how a table's columns become a network's numbers. Fitted on the training part alone and saved in the
//! model, so that evaluation and prediction do exactly the same.
//!
//! Numbers: missing ones are filled, then all are scaled. Texts: one output a category of the training part, 1 or 0. A
//! missing text has an output of its own if training had one; a category that training never saw, and a missing text that
//! training never had, give zeros in all of the column's outputs: no output exists whose weight has learnt about them.
//! One-hot outputs are not scaled. A text column with more than [`MAX_CATEGORIES`] categories (names, identifiers) is
//! refused.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use super::dataset::plural;
use super::pixels::PixelScaling;
use super::scaling::{Scale, Scaling};
use super::schema::Schema;
use super::table::{Column, ColumnKind, Table, Texts};
use super::target::Target;
use super::task::Classes;
use crate::{Error, ErrorKind, Result};

/// The largest number of distinct texts in an input column.
pub const MAX_CATEGORIES: usize = 1000;

/// What to do with a missing number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// Leave the row out of training, validation and test. A row to predict cannot be left out: it is an error.
    Drop,
    /// The mean of the training part.
    Mean,
    /// The median of the training part.
    #[default]
    Median,
    /// This number.
    Constant(f64),
}

/// How one column of numbers is to be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct NumberOptions {
    /// What to do with a missing number.
    pub missing: Missing,
    /// How to scale.
    pub scale: Scale,
}

/// How a table is to be prepared. The default: medians for missing numbers, everything standardised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct PrepareOptions {
    /// For columns of numbers.
    pub numbers: NumberOptions,
    /// How to scale a regression target.
    pub target_scale: Scale,
    /// For single columns of numbers, by name, in place of `numbers`.
    pub columns: BTreeMap<String, NumberOptions>,
}

impl PrepareOptions {
    fn of(&self, column: &str) -> NumberOptions {
        *self.columns.get(column).unwrap_or(&self.numbers)
    }
}

/// The fitted preparation of one input column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Input {
    /// Numbers: one output.
    Number {
        /// The column.
        name: String,
        /// The rule for missing numbers.
        missing: Missing,
        /// What a missing number becomes before scaling; without meaning under [`Missing::Drop`].
        fill: f64,
        /// The rule that the scaling was fitted by.
        scale: Scale,
        /// What becomes 0.
        shift: f64,
        /// The distance that becomes 1; 0 for a constant column.
        divisor: f64,
    },
    /// Texts: one output a category, then one for missing if training had any.
    Category {
        /// The column.
        name: String,
        /// Distinct, sorted by their bytes.
        categories: Vec<String>,
        /// Whether a missing text has an output of its own.
        missing_output: bool,
    },
}

impl Input {
    /// The column.
    pub fn name(&self) -> &str {
        match self {
            Input::Number { name, .. } | Input::Category { name, .. } => name,
        }
    }

    /// How many outputs the column becomes.
    pub fn width(&self) -> usize {
        match self {
            Input::Number { .. } => 1,
            Input::Category { categories, missing_output, .. } => {
                categories.len() + usize::from(*missing_output)
            }
        }
    }

    fn kind(&self) -> ColumnKind {
        match self {
            Input::Number { .. } => ColumnKind::Number,
            Input::Category { .. } => ColumnKind::Text,
        }
    }

    fn drops_missing(&self) -> bool {
        matches!(self, Input::Number { missing: Missing::Drop, .. })
    }
}

/// What becomes of a row whose missing number has no filling ([`Missing::Drop`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incomplete {
    /// It is left out.
    LeaveOut,
    /// It is an error: each row needs an answer.
    Refuse,
}

/// Prepared inputs, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    /// `[rows.len(), columns]`; every value is finite.
    pub values: Vec<f32>,
    /// The number of outputs of the preparation.
    pub columns: usize,
    /// The table's row of each row here.
    pub rows: Vec<usize>,
    /// For each text column that had some: its name, and how many of its cells hold a category that training never saw.
    pub unseen: Vec<(String, usize)>,
}

impl Features {
    /// What a user should know of [`Features::unseen`], a line for each column.
    pub fn notes(&self) -> Vec<String> {
        let note = |(name, count): &(String, usize)| {
            let rows = plural(*count, "row");
            format!("column '{name}' has {count} {rows} with a text that training never saw")
        };
        self.unseen.iter().map(note).collect()
    }
}

/// The fitted preparation of a whole table, or of pictures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct Preparation {
    /// What the outputs of a row make, where that is more than a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    shape: Option<Vec<usize>>,
    target: Target,
    /// The columns; none where there are pixels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<Input>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pixels: Option<PixelScaling>,
}

/// What is read from a file before it is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    shape: Option<Vec<usize>>,
    target: Target,
    #[serde(default)]
    inputs: Vec<Input>,
    pixels: Option<PixelScaling>,
}

impl TryFrom<Unchecked> for Preparation {
    type Error = Error;

    fn try_from(raw: Unchecked) -> Result<Self> {
        let error =
            |name: &str, what: &str| Error::new(ErrorKind::Data, format!("preparation of '{name}': {what}"));
        if raw.inputs.is_empty() == raw.pixels.is_none() {
            let what = if raw.pixels.is_none() { "no inputs" } else { "both columns and pixels" };
            return Err(Error::new(ErrorKind::Data, format!("the preparation has {what}")));
        }
        let mut names = BTreeSet::from([raw.target.name()]);
        raw.target.check()?;
        for input in &raw.inputs {
            if !names.insert(input.name()) {
                return Err(error(input.name(), "the name appears twice"));
            }
            match input {
                Input::Number { name, missing, fill, scale, shift, divisor } => {
                    let constant = if let Missing::Constant(value) = missing { *value } else { 0.0 };
                    let sound = Scaling { rule: *scale, shift: *shift, divisor: *divisor }.is_sound();
                    if !sound || !fill.is_finite() || !constant.is_finite() {
                        return Err(error(name, "a number is not finite, or the divisor is negative"));
                    }
                }
                Input::Category { name, categories, .. } => {
                    if !categories.is_sorted_by(|a, b| a < b) {
                        return Err(error(name, "the categories are not distinct and sorted"));
                    }
                }
            }
        }
        if let Some(pixels) = &raw.pixels {
            pixels.check()?;
        }
        let prepared =
            Preparation { shape: None, target: raw.target, inputs: raw.inputs, pixels: raw.pixels };
        match raw.shape {
            Some(shape) if product_of(&shape) != Some(prepared.width()) || prepared.pixels.is_some() => {
                Err(error("a row", &format!("{} values do not make {shape:?}", prepared.width())))
            }
            shape => Ok(Preparation { shape, ..prepared }),
        }
    }
}

fn product_of(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent))
}

impl Preparation {
    /// Fits a preparation to the rows `rows` of `table`. Column `target` is the target, all others are inputs; `classes`
    /// are the target's, or nothing for regression. Returns the preparation and notes for the user.
    ///
    /// # Errors
    /// Kind `Data`: no input column, too many categories, numbers too large to scale, no row left under
    /// [`Missing::Drop`], a target that is missing. Kind `Argument`: options for a column that is not there or not of
    /// numbers, a constant that is not finite.
    pub fn fit(
        table: &Table,
        target: usize,
        classes: Option<Classes>,
        rows: &[usize],
        options: &PrepareOptions,
    ) -> Result<(Self, Vec<String>)> {
        check_options(table, target, options)?;
        let inputs: Vec<usize> = (0..table.names().len()).filter(|&index| index != target).collect();
        if inputs.is_empty() {
            return Err(Error::data(
                table.source(),
                "there is no column besides the target: nothing to learn from",
            ));
        }
        let rows = complete_rows(table, target, rows, options);
        if rows.is_empty() {
            let message = "every row lacks a number in some column, so dropping such rows leaves none";
            return Err(Error::data(table.source(), message)
                .with_help("fill missing numbers with the median instead"));
        }
        let mut notes = Vec::new();
        let inputs: Vec<Input> = inputs
            .iter()
            .map(|&index| match table.column(index) {
                Column::Number(values) => {
                    let options = options.of(&table.names()[index]);
                    fit_number(table, index, values, &rows, options, &mut notes)
                }
                Column::Text(texts) => fit_category(table, index, texts, &rows),
            })
            .collect::<Result<_>>()?;
        let is_numbers = inputs.iter().all(|input| input.kind() == ColumnKind::Number);
        let shape = table.shape().filter(|shape| is_numbers && product_of(shape) == Some(inputs.len()));
        let shape = shape.map(<[usize]>::to_vec);
        let target = Target::fit(table, target, classes, &rows, options.target_scale)?;
        Ok((Preparation { shape, target, inputs, pixels: None }, notes))
    }

    /// A preparation of pictures.
    ///
    /// # Errors
    /// Kind `Data`: `pixels` is not sound.
    pub fn of_pixels(target: Target, pixels: PixelScaling) -> Result<Self> {
        pixels.check()?;
        Ok(Preparation { shape: None, target, inputs: Vec::new(), pixels: Some(pixels) })
    }

    /// The fitted inputs in the model's order; none for pictures.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// The target.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// How pictures are prepared; nothing for a table.
    pub fn pixels(&self) -> Option<&PixelScaling> {
        self.pixels.as_ref()
    }

    /// The number of values that a row becomes: the network's inputs.
    pub fn width(&self) -> usize {
        match &self.pixels {
            Some(pixels) => pixels.shape().iter().product(),
            None => self.inputs.iter().map(Input::width).sum(),
        }
    }

    /// The shape that a row becomes: `[C, H, W]` for pictures (the built-in digits are such), the shape that the table
    /// was given for its rows ([`Table::with_shape`]), else `[width]`.
    pub fn shape(&self) -> Vec<usize> {
        match (&self.pixels, &self.shape) {
            (Some(pixels), _) => pixels.shape().to_vec(),
            (None, Some(shape)) => shape.clone(),
            (None, None) => vec![self.width()],
        }
    }

    /// A name for each output of a table: the column's, or `column=category`.
    pub fn output_names(&self) -> Vec<String> {
        let mut names = Vec::with_capacity(self.width());
        for input in &self.inputs {
            match input {
                Input::Number { name, .. } => names.push(name.clone()),
                Input::Category { name, categories, missing_output } => {
                    names.extend(categories.iter().map(|category| format!("{name}={category}")));
                    names.extend(missing_output.then(|| format!("{name} missing")));
                }
            }
        }
        names
    }

    /// The columns that a table for this model must have; no inputs for a model of pictures.
    pub fn schema(&self) -> Schema {
        Schema {
            inputs: self.inputs.iter().map(|input| (input.name().to_owned(), input.kind())).collect(),
            target: Some((self.target.name().to_owned(), self.target.kind())),
        }
    }

    /// Prepares the rows `rows` of a table, whose columns are found by name. A target column is not looked at.
    ///
    /// # Errors
    /// Kind `Data`: the model is one of pictures; a column is not there or of the other kind; a prepared value does not
    /// fit f32; a missing number under [`Missing::Drop`] with [`Incomplete::Refuse`].
    ///
    /// # Panics
    /// Where one of `rows` is not a row of the table.
    pub fn transform(&self, table: &Table, rows: &[usize], incomplete: Incomplete) -> Result<Features> {
        if let Some(pixels) = &self.pixels {
            let message = format!("the model was trained on {pixels}, found a table");
            return Err(Error::data(table.source(), message));
        }
        let places: Vec<usize> =
            self.inputs.iter().map(|input| table.index_of(input.name())).collect::<Result<_>>()?;
        for (input, &place) in self.inputs.iter().zip(&places) {
            if table.column(place).kind() != input.kind() {
                let message = format!("expected {}, found {}", input.kind(), table.column(place).kind());
                return Err(Error::data(table.source(), message).at(
                    table.source(),
                    None,
                    Some(input.name()),
                ));
            }
        }
        let mut kept = rows.to_vec();
        for (input, &place) in self.inputs.iter().zip(&places).filter(|(input, _)| input.drops_missing()) {
            if incomplete == Incomplete::Refuse
                && let Some(&row) = kept.iter().find(|&&row| table.column(place).is_missing(row))
            {
                let message = "the number is missing, and the model was trained without such rows";
                return Err(table.error(row, place, message).with_help(format!("column '{}'", input.name())));
            }
            kept.retain(|&row| !table.column(place).is_missing(row));
        }

        let columns = self.width();
        let mut values = vec![0.0f32; kept.len() * columns];
        let mut unseen = Vec::new();
        let mut first = 0;
        for (input, &place) in self.inputs.iter().zip(&places) {
            let outputs =
                values.chunks_exact_mut(columns.max(1)).map(|row| &mut row[first..first + input.width()]);
            match (input, table.column(place)) {
                (Input::Number { fill, scale, shift, divisor, .. }, Column::Number(cells)) => {
                    let scaling = Scaling { rule: *scale, shift: *shift, divisor: *divisor };
                    for (&row, output) in kept.iter().zip(outputs) {
                        let cell = if cells[row].is_nan() { *fill } else { cells[row] };
                        output[0] = scaling.apply(cell) as f32;
                        if !output[0].is_finite() {
                            let message = format!("{cell:e} becomes too large a number for f32");
                            return Err(table.error(row, place, message));
                        }
                    }
                }
                (Input::Category { name, categories, missing_output }, Column::Text(texts)) => {
                    let count =
                        one_hot(texts, categories, *missing_output, kept.iter().copied().zip(outputs));
                    if count > 0 {
                        unseen.push((name.clone(), count));
                    }
                }
                _ => return Err(Error::internal("a column changed its kind")),
            }
            first += input.width();
        }
        Ok(Features { values, columns, rows: kept, unseen })
    }
}

/// Those of `rows` that lack no number in a column under [`Missing::Drop`].
pub(super) fn complete_rows(
    table: &Table,
    target: usize,
    rows: &[usize],
    options: &PrepareOptions,
) -> Vec<usize> {
    let droppers: Vec<&Column> = (0..table.names().len())
        .filter(|&index| index != target && options.of(&table.names()[index]).missing == Missing::Drop)
        .map(|index| table.column(index))
        .filter(|column| column.kind() == ColumnKind::Number)
        .collect();
    rows.iter().copied().filter(|&row| !droppers.iter().any(|column| column.is_missing(row))).collect()
}

fn check_options(table: &Table, target: usize, options: &PrepareOptions) -> Result<()> {
    for name in options.columns.keys() {
        let index = table.find(name).filter(|&index| index != target);
        if index.is_none_or(|index| table.column(index).kind() != ColumnKind::Number) {
            return Err(Error::argument(format!(
                "options for '{name}', which is no input column of numbers"
            )));
        }
    }
    for options in options.columns.values().chain([&options.numbers]) {
        if let Missing::Constant(value) = options.missing
            && !value.is_finite()
        {
            return Err(Error::argument(format!(
                "expected a finite number for missing values, found {value}"
            )));
        }
    }
    Ok(())
}

fn fit_number(
    table: &Table,
    index: usize,
    values: &[f64],
    rows: &[usize],
    options: NumberOptions,
    notes: &mut Vec<String>,
) -> Result<Input> {
    let name = &table.names()[index];
    let mut present: Vec<f64> = rows.iter().map(|&row| values[row]).filter(|value| !value.is_nan()).collect();
    if present.is_empty() {
        notes.push(format!("column '{name}' has no value in the training part; it becomes a constant"));
    }
    let fill = match options.missing {
        Missing::Constant(value) => value,
        Missing::Drop => 0.0,
        _ if present.is_empty() => 0.0,
        Missing::Mean => present.iter().sum::<f64>() / present.len() as f64,
        Missing::Median => median(&mut present),
    };
    // Over the filled column, as it is trained on.
    let filled = rows.iter().map(|&row| if values[row].is_nan() { fill } else { values[row] });
    match Scaling::fit(options.scale, filled) {
        Some(Scaling { shift, divisor, .. }) if fill.is_finite() => Ok(Input::Number {
            name: name.clone(),
            missing: options.missing,
            fill,
            scale: options.scale,
            shift,
            divisor,
        }),
        _ => Err(Error::data(table.source(), "the numbers are too large to average").at(
            table.source(),
            None,
            Some(name.clone()),
        )),
    }
}

/// The median of `values`, which are finite and not empty; of an even number the mean of the middle two.
fn median(values: &mut [f64]) -> f64 {
    let middle = values.len() / 2;
    let even = values.len().is_multiple_of(2);
    let (below, &mut upper, _) = values.select_nth_unstable_by(middle, f64::total_cmp);
    if even {
        let lower = below.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        // Halves first: the sum of two large numbers overflows.
        0.5 * lower + 0.5 * upper
    } else {
        upper
    }
}

fn fit_category(table: &Table, index: usize, texts: &Texts, rows: &[usize]) -> Result<Input> {
    let name = &table.names()[index];
    let categories = Classes::of(table, index, rows).map(|classes| classes.names).unwrap_or_default();
    if categories.len() > MAX_CATEGORIES {
        let message = format!(
            "{} different texts in {} rows; one input each is too many (at most {MAX_CATEGORIES})",
            categories.len(),
            rows.len()
        );
        return Err(Error::data(table.source(), message)
            .at(table.source(), None, Some(name.clone()))
            .with_help("leave the column out of the file if it only names the rows"));
    }
    let missing_output = rows.iter().any(|&row| texts.codes()[row] == Texts::MISSING);
    Ok(Input::Category { name: name.clone(), categories, missing_output })
}

/// Sets a 1 in each row's outputs, which are zeros; returns how many cells had a category that is not known.
fn one_hot<'a>(
    texts: &Texts,
    categories: &[String],
    missing_output: bool,
    rows: impl Iterator<Item = (usize, &'a mut [f32])>,
) -> usize {
    let known: HashMap<&str, usize> =
        categories.iter().enumerate().map(|(output, category)| (category.as_str(), output)).collect();
    let of_code: Vec<Option<usize>> =
        texts.distinct().iter().map(|text| known.get(text.as_str()).copied()).collect();
    let mut unseen = 0;
    for (row, outputs) in rows {
        let code = texts.codes()[row];
        let output = if code == Texts::MISSING {
            missing_output.then_some(categories.len())
        } else {
            unseen += usize::from(of_code[code as usize].is_none());
            of_code[code as usize]
        };
        if let Some(output) = output {
            outputs[output] = 1.0;
        }
    }
    unseen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_even_and_odd_counts() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&mut [f64::MAX, f64::MAX]), f64::MAX);
        assert_eq!(median(&mut [-1.0]), -1.0);
    }
}
