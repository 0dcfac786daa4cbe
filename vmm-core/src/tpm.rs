//! The TPM's backend and the chip in front of it: a machine has at most one of each.

use std::sync::Arc;

use devices::tpm::{TpmCrb, TpmEmulator};
use qapi_schema::QmpError;
use qapi_schema::cli::TpmdevOptions;
use qapi_schema::tpm::{
    TPMEmulatorOptions, TPMEmulatorOptionsWrapper, TPMInfo, TpmModel, TpmTypeOptions,
    TpmTypeOptionsVariant,
};

use crate::vm::Vm;

/// A backend.
pub struct TpmBackend {
    id: String,
    /// The chardev with its control channel.
    chardev: String,
    emulator: Arc<TpmEmulator>,
    /// Whether a chip has it.
    in_use: bool,
}

impl TpmBackend {
    /// How clients see it, once a chip has it.
    pub fn view(&self) -> Option<TPMInfo> {
        let data = TPMEmulatorOptions {
            chardev: self.chardev.clone(),
        };
        self.in_use.then(|| TPMInfo {
            id: self.id.clone(),
            model: TpmModel::TpmCrb,
            options: TpmTypeOptions {
                r#type: TpmTypeOptionsVariant::Emulator(TPMEmulatorOptionsWrapper { data }),
            },
        })
    }
}

impl Vm {
    /// `-tpmdev`: makes the acquaintance of the emulator.
    ///
    /// # Errors
    /// There is a backend already, or nobody who is a TPM 2.0 answers.
    pub fn add_tpm(&mut self, options: TpmdevOptions) -> Result<(), QmpError> {
        if self.tpm.is_some() {
            return Err(QmpError::generic("Only one TPM is allowed."));
        }
        let chardev = self.chardevs.find(&options.chardev);
        let chardev = chardev.map_err(|error| QmpError::from_error(&error))?;
        let emulator = TpmEmulator::behind(&chardev);
        self.tpm = Some(TpmBackend {
            id: options.id,
            chardev: options.chardev,
            emulator: emulator.map_err(|error| QmpError::from_error(&error))?,
            in_use: false,
        });
        Ok(())
    }

    /// A chip in front of the backend `id`.
    ///
    /// # Errors
    /// There is no such backend, or it has a chip.
    pub(crate) fn tpm_chip(&mut self, id: &str) -> Result<Arc<TpmCrb>, QmpError> {
        let Some(backend) = self.tpm.as_mut().filter(|backend| backend.id == id) else {
            return Err(QmpError::generic(format!(
                "Property 'tpm-crb.tpmdev' can't find value '{id}'"
            )));
        };
        if backend.in_use {
            return Err(QmpError::generic("at most one TPM device is permitted"));
        }
        let chip = TpmCrb::new(Arc::clone(&backend.emulator), &self.reactor)
            .map_err(|error| QmpError::from_error(&error))?;
        backend.in_use = true;
        Ok(chip)
    }
}
