//! What can be wrong with a command line: always one line, always naming the option as typed.

use qapi_schema::QmpError;
use qapi_schema::describe::nearest;
use qapi_schema::input::keyval::KeyvalError;

/// A command line that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// No option has that name.
    #[error("{typed}: invalid option{}", did_you_mean(.near.as_deref()))]
    UnknownOption {
        /// As typed, with its dashes.
        typed: String,
        /// The known one most like it, with one dash.
        near: Option<String>,
    },
    /// The option's argument is not there.
    #[error("{0}: requires an argument")]
    NoArgument(String),
    /// An argument that belongs to no option.
    #[error("'{0}' is no option; disks come with -blockdev and -device, kernels with -kernel")]
    Stray(String),
    /// Options and keys are text.
    #[error("argument {0} is not UTF-8")]
    NotText(usize),
    /// The option's argument is wrong, or contradicts another option.
    #[error("{typed}: {problem}")]
    Argument {
        /// The option as typed.
        typed: String,
        /// What is wrong; told with the option, on the one line there is.
        problem: Problem,
    },
}

/// What is wrong with one option's argument.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It is no list of `key=value`.
    #[error(transparent)]
    Keyval(#[from] KeyvalError),
    /// It begins like JSON and is none.
    #[error(transparent)]
    Json(#[from] monitor::ParseError),
    /// A key or a value that the schema does not have.
    #[error(transparent)]
    Schema(#[from] QmpError),
    /// Well-formed, but nothing that can be done.
    #[error("{0}")]
    Meaning(String),
}

impl Problem {
    /// A problem in words.
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self::Meaning(text.into())
    }

    /// `what`, and the known name most like `found`.
    pub(super) fn with_nearest<'n>(
        what: impl Into<String>,
        found: &str,
        known: impl IntoIterator<Item = &'n str>,
    ) -> Self {
        let near = nearest(found, known);
        Self::Meaning(what.into() + &did_you_mean(near))
    }

    /// The same, as the error of an option.
    pub(super) fn of(self, typed: &str) -> CliError {
        CliError::Argument {
            typed: typed.to_owned(),
            problem: self,
        }
    }
}

fn did_you_mean(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!("; did you mean '{near}'?"))
}
