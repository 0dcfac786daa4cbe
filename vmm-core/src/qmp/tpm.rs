//! `tpm.json`: the machine's TPM.

use qapi_schema::tpm::{Commands, TPMInfo, TpmModel, TpmType};
use qapi_schema::{Context, QmpError};

use crate::tpm::TpmBackend;
use crate::vm::Vm;

impl Commands for Vm {
    fn query_tpm(&mut self, _cx: &mut dyn Context) -> Result<Vec<TPMInfo>, QmpError> {
        Ok(self.tpm.iter().filter_map(TpmBackend::view).collect())
    }

    fn query_tpm_models(&mut self, _cx: &mut dyn Context) -> Result<Vec<TpmModel>, QmpError> {
        Ok(TpmModel::ALL.to_vec())
    }

    fn query_tpm_types(&mut self, _cx: &mut dyn Context) -> Result<Vec<TpmType>, QmpError> {
        Ok(TpmType::ALL.to_vec())
    }
}
