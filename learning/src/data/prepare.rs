//! From records to what a model sees: missing cells filled, numeric columns standardised.
//!
//! The mean and deviation come from the federation, the plan, or the site's own training rows; never from test rows.
//! One-hot columns are left as they are. Nothing that is not finite leaves this file.
//!
//! A record that cannot be used is an error that names it, but where the plan protects single records: there each stands
//! alone, so it is left out and decides nothing about the others, and cells are clamped to [`CELL_MAX`].

use std::sync::Arc;

use protocol::{
    CELL_MAX, DataSpec, Decline, LayerSpec, LearnError, Missing, ModelSpec, Spec, Standardise, Standardiser,
    Statistic, TableSpec, Target,
};

use super::{Dataset, Labels, View};

/// Where a site's records come from.
pub trait DataSource: Send {
    /// The records in the form the plan asks for. Called again whenever the plan changes.
    ///
    /// # Errors
    /// [`LearnError`] with the file, line, column and value at fault.
    fn load(&mut self, spec: &Spec) -> Result<SiteData, LearnError>;
}

/// A site's training and test records, not yet prepared.
#[derive(Clone, Debug)]
pub struct SiteData {
    /// To train on.
    pub train: View,
    /// To measure on, if the site has such.
    pub test: Option<View>,
}

/// Clean records: every number is finite. Arrays stay where they are; the rows of a table are copied, since preparing changes
/// them.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// To train on.
    pub train: View,
    /// To measure on, if the site has such.
    pub test: Option<View>,
}

/// Records already in memory, such as a virtual client's, serve any plan that fits them.
impl DataSource for SiteData {
    fn load(&mut self, spec: &Spec) -> Result<SiteData, LearnError> {
        self.check(spec)?;
        Ok(self.clone())
    }
}

impl SiteData {
    /// Fills missing cells and standardises numeric columns as the plan says. `standardiser` is the federation's, needed
    /// where the plan says [`Standardise::Federated`] and ignored elsewhere. [`Missing::Mean`] fills with the mean that
    /// is subtracted, and without standardisation with the site's training mean; a column without any value counts as 0.
    ///
    /// # Errors
    /// When records do not fit the plan, the standardiser is absent or of another length, or a number is not finite. Where the
    /// plan protects single records, only when the records as a whole have another shape or another kind of label.
    pub fn prepared(&self, spec: &Spec, standardiser: Option<&Standardiser>) -> Result<Prepared, LearnError> {
        self.check(spec)?;
        let recipe = match &spec.data {
            DataSpec::Table(table) => Some(Recipe::of(table, &self.train, standardiser)?),
            DataSpec::Tensor(_) => None,
        };
        if spec.privacy.examples.is_some() {
            let alone = |view: &View| usable(view, recipe.as_ref(), spec);
            return Ok(Prepared { train: alone(&self.train), test: self.test.as_ref().map(alone) });
        }
        let cleaned = |view: &View, what: &str| {
            let Some(recipe) = &recipe else {
                return find_unfinished(view, &view.rows, what).map_or_else(|| Ok(view.clone()), Err);
            };
            let mut records = view.copied();
            recipe.apply(&mut records);
            let records = View::whole(Arc::new(records));
            find_unfinished(&records, &view.rows, what).map_or(Ok(records), Err)
        };
        let known = |view: View, rows: &[u32], what: &str| match find_unknown_symbol(&view, spec, rows, what)
        {
            Some(unknown) => Err(unknown),
            None => Ok(view),
        };
        let train = known(cleaned(&self.train, "training")?, &self.train.rows, "training")?;
        let test = self.test.as_ref().map(|test| known(cleaned(test, "test")?, &test.rows, "test"));
        Ok(Prepared { train, test: test.transpose()? })
    }

    /// Whether the records have the plan's form; where single records are protected, whatever a single one is.
    fn check(&self, spec: &Spec) -> Result<(), LearnError> {
        let parts = [(Some(&self.train), "training"), (self.test.as_ref(), "test")];
        for (view, what) in parts.into_iter().filter_map(|(view, what)| Some((view?, what))) {
            check_form(view, spec, what)?;
            if spec.privacy.examples.is_none() {
                check_classes(view, spec, what)?;
            }
        }
        Ok(())
    }

    /// Count, sum and sum of squares of the present cells of every numeric column over the training rows, in row order
    /// and f64, under the names of [`Spec::statistics`]; empty where the plan has none.
    pub fn statistics(&self, spec: &Spec) -> Vec<Statistic> {
        let names = spec.statistics();
        let totals = totals(&self.train, names.len() / 3);
        names.into_iter().zip(totals).map(|(name, value)| Statistic { name, value }).collect()
    }
}

/// What is done to each numeric column: `NaN -> fill`, then `(x - mean) / std`.
struct Recipe {
    fill: Vec<f64>,
    scale: Option<Standardiser>,
}

impl Recipe {
    fn of(table: &TableSpec, train: &View, federated: Option<&Standardiser>) -> Result<Self, LearnError> {
        let count = table.features.len();
        let own = || Standardiser::from_totals(&totals(train, count)).expect("totals are threes");
        let scale = match &table.standardise {
            Standardise::None => None,
            Standardise::Site => Some(own()),
            Standardise::Given { mean, std } => Some(Standardiser {
                mean: mean.clone(),
                std: std.iter().map(|std| std.value()).collect(),
            }),
            Standardise::Federated => Some(federated.cloned().ok_or_else(|| {
                let message = "the plan standardises with the federation's statistics, but the task brought none; \
                               the server must run its statistics round first";
                LearnError::new(Decline::Unsupported, message)
            })?),
        };
        if let Some(wrong) = scale.as_ref().filter(|scale| !scale.fits(count)) {
            let message = format!(
                "{} means and {} deviations came for {count} numeric columns; each column needs a finite mean and a \
                 deviation above 0",
                wrong.mean.len(),
                wrong.std.len()
            );
            return Err(LearnError::new(Decline::Unsupported, message));
        }
        let fill = match table.missing {
            Missing::Mean => scale.as_ref().map_or_else(|| own().mean, |scale| scale.mean.clone()),
            Missing::Constant(value) => vec![value; count],
            Missing::Refuse | Missing::Drop => vec![f64::NAN; count],
        };
        Ok(Self { fill, scale })
    }

    fn apply(&self, records: &mut Dataset) {
        let width = records.width();
        for row in records.features.make_real().chunks_exact_mut(width) {
            for (column, (cell, fill)) in row.iter_mut().zip(&self.fill).enumerate() {
                let value = if cell.is_nan() { *fill } else { f64::from(*cell) };
                *cell = match &self.scale {
                    Some(scale) => (value - scale.mean[column]) / scale.std[column],
                    None => value,
                } as f32;
            }
        }
    }
}

/// Count, sum and sum of squares of the first `columns` columns, over the cells that are present.
fn totals(view: &View, columns: usize) -> Vec<f64> {
    let mut totals = vec![0.0; columns * 3];
    let mut cells = vec![0.0; view.dataset.width()];
    for row in view.rows.iter() {
        view.dataset.copy_sample_into(*row as usize, &mut cells);
        for (total, cell) in totals.chunks_exact_mut(3).zip(&cells).filter(|(_, cell)| !cell.is_nan()) {
            let value = f64::from(*cell);
            total[0] += 1.0;
            total[1] += value;
            total[2] += value * value;
        }
    }
    totals
}

/// The records that a model can take, each judged on its own. A table's cells are clamped.
fn usable(view: &View, recipe: Option<&Recipe>, spec: &Spec) -> View {
    let view = match recipe {
        None => view.clone(),
        Some(recipe) => {
            let mut records = view.copied();
            recipe.apply(&mut records);
            for cell in records.features.make_real() {
                *cell = cell.clamp(-CELL_MAX, CELL_MAX);
            }
            View::whole(Arc::new(records))
        }
    };
    let dataset = &view.dataset;
    let finite = dataset.features.are_finite();
    let symbols = symbols(spec);
    let mut cells = vec![0.0; dataset.width()];
    let mut is_usable = |row: u32| {
        let labelled = match (&dataset.labels, spec.target()) {
            (Labels::Real(values), _) => values[row as usize].is_finite(),
            (Labels::Classes(labels), Target::Classes(classes)) => (labels[row as usize] as usize) < classes,
            (Labels::Classes(_), Target::Real) => false,
        };
        if !labelled || (finite && symbols.is_none()) {
            return labelled;
        }
        dataset.copy_sample_into(row as usize, &mut cells);
        cells.iter().all(|cell| cell.is_finite() && symbols.is_none_or(|symbols| is_symbol(*cell, symbols)))
    };
    let rows = view.rows.iter().copied().filter(|row| is_usable(*row)).collect();
    View { rows, ..view.clone() }
}

/// Whether records in memory have the plan's shape and kind of label.
fn check_form(view: &View, spec: &Spec, what: &str) -> Result<(), LearnError> {
    let (dataset, shape) = (&view.dataset, spec.input_shape());
    let refuse = |message: String| Err(LearnError::new(Decline::Data, message));
    if dataset.shape != shape {
        return refuse(format!("{what} samples have shape {:?} where the plan has {shape:?}", dataset.shape));
    }
    if dataset.features.len() != dataset.len() * dataset.width() {
        let (values, rows) = (dataset.features.len(), dataset.len());
        return refuse(format!("{what} records hold {values} values for {rows} labels of shape {shape:?}"));
    }
    if let Some(row) = view.rows.iter().find(|row| **row as usize >= dataset.len()) {
        return refuse(format!("{what} row {row} does not exist; there are {}", dataset.len()));
    }
    match (&dataset.labels, spec.target()) {
        (Labels::Real(_), Target::Real) | (Labels::Classes(_), Target::Classes(_)) => Ok(()),
        (Labels::Real(_), Target::Classes(_)) => {
            refuse(format!("{what} labels are real; the plan has classes"))
        }
        (Labels::Classes(_), Target::Real) => {
            refuse(format!("{what} labels are classes; the plan has a real target"))
        }
    }
}

/// Whether every class is one of the plan's.
fn check_classes(view: &View, spec: &Spec, what: &str) -> Result<(), LearnError> {
    let (Labels::Classes(labels), Target::Classes(classes)) = (&view.dataset.labels, spec.target()) else {
        return Ok(());
    };
    let beyond = view.rows.iter().find(|row| labels[**row as usize] as usize >= classes);
    beyond.map_or(Ok(()), |row| {
        let label = labels[*row as usize];
        let message =
            format!("{what} row {row} has class {label}; the plan has classes 0 to {}", classes - 1);
        Err(LearnError::new(Decline::Data, message))
    })
}

/// The first number that a model could not take. `rows` are the numbers by which the site knows the records.
fn find_unfinished(records: &View, rows: &[u32], what: &str) -> Option<LearnError> {
    let label = match &records.dataset.labels {
        Labels::Real(values) => records.rows.iter().position(|row| !values[*row as usize].is_finite()),
        Labels::Classes(_) => None,
    };
    let message = match (find_unfinished_cell(records), label) {
        (Some((place, column, value)), _) => format!(
            "{what} row {} has {value} in column {column} after preparation; clean it or set `missing`",
            rows[place]
        ),
        (None, Some(place)) => format!("{what} row {} has a label that is not finite", rows[place]),
        (None, None) => return None,
    };
    Some(LearnError::new(Decline::Data, message))
}

/// How many symbols the embedding has with which the plan's model begins, if it does.
fn symbols(spec: &Spec) -> Option<usize> {
    let ModelSpec::Layers(layers) = &spec.model else { return None };
    let Some(LayerSpec::Embedding { symbols, .. }) = layers.first() else { return None };
    Some(*symbols)
}

fn is_symbol(value: f32, symbols: usize) -> bool {
    value.fract() == 0.0 && value >= 0.0 && (value as usize) < symbols
}

/// The first value that the plan's embedding has no vector for, where the model begins with one.
fn find_unknown_symbol(records: &View, spec: &Spec, rows: &[u32], what: &str) -> Option<LearnError> {
    let symbols = symbols(spec)?;
    let mut cells = vec![0.0; records.dataset.width()];
    (0..records.len()).find_map(|place| {
        records.copy_sample_into(place, &mut cells);
        let column = cells.iter().position(|value| !is_symbol(*value, symbols))?;
        let message = format!(
            "{what} row {} has {} in place {column}, and the model's embedding has the symbols 0 to {}; give it more `symbols`, \
             or mend the record",
            rows[place],
            cells[column],
            symbols.saturating_sub(1)
        );
        Some(LearnError::new(Decline::Data, message))
    })
}

/// The first cell that is not finite: its place among the records, its column and its value.
fn find_unfinished_cell(records: &View) -> Option<(usize, usize, f32)> {
    // Whether a data set that many clients share is finite is looked at once, not once a client.
    if records.dataset.features.are_finite() {
        return None;
    }
    let mut cells = vec![0.0; records.dataset.width()];
    (0..records.len()).find_map(|place| {
        records.copy_sample_into(place, &mut cells);
        let column = cells.iter().position(|value| !value.is_finite())?;
        Some((place, column, cells[column]))
    })
}
