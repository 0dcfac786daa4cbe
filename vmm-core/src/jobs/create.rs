//! `blockdev-create`: an image is made.
//!
//! What is opened is opened before the job begins; whatever is wrong, the job says at its end, as
//! clients of QEMU expect it.

use block::format::qcow2::{ImageError, NewImage, Preallocation, create};
use block::job::{JobCx, JobFailure, JobKind};
use block::protocol::create::NewFile;
use block::spec::ChildSpec;
use block::{Gate, NodeRef, Permissions, Usage};
use fdset::Door;
use qapi_schema::QmpError;
use qapi_schema::block_create::BlockdevCreate;

use super::{End, Manners, refused};
use crate::resolve::create::{self as resolved, CreateSpec, NewFileSpec, NewQcow2Spec};
use crate::vm::Vm;

/// What is given back at the end, well or not.
#[derive(Debug)]
pub(crate) struct CreateEnd {
    nodes: Vec<String>,
}

/// What is open, and what to make of it.
enum Work {
    File(NewFile, u64, Preallocation),
    Image {
        file: NodeRef,
        data: Option<NodeRef>,
        image: NewImage,
    },
}

/// Whoever makes an image has its file for itself.
const ALONE: Usage = Usage {
    uses: Permissions::WRITE.union(Permissions::RESIZE),
    shares: Permissions::CONSISTENT_READ,
};

impl Vm {
    /// Begins to make an image.
    ///
    /// # Errors
    /// The id cannot be had, or images of this driver are not made.
    pub(crate) fn begin_create(
        &mut self,
        door: &Door,
        args: BlockdevCreate,
    ) -> Result<(), QmpError> {
        resolved::check_driver(&args.options)?;
        let manners = Manners {
            id: Some(args.job_id),
            auto_dismiss: Some(false),
            ..Manners::default()
        };
        let id = self.job_id(&manners, "")?;
        let mut end = CreateEnd { nodes: Vec::new() };
        let work = resolved::create(args.options)
            .and_then(|spec| self.prepare_create(door, &id, spec, &mut end));
        let end = (JobKind::Create, End::Create(end));
        self.begin_job(&id, end, &manners, &Gate::new(), move |cx| make(cx, work))
    }

    fn prepare_create(
        &mut self,
        door: &Door,
        job: &str,
        spec: CreateSpec,
        end: &mut CreateEnd,
    ) -> Result<Work, QmpError> {
        match spec {
            CreateSpec::File(spec) => self.open_new(door, job, &spec),
            CreateSpec::Qcow2(spec) => {
                let NewQcow2Spec {
                    file,
                    data_file,
                    mut image,
                } = *spec;
                let file = self.lend(door, job, file, end)?;
                let mut data = None;
                if let Some((child, raw)) = data_file {
                    let node = self.lend(door, job, child, end)?;
                    let view = self.graph.node(node.name());
                    let name = view.map_or("", |view| view.filename()).to_owned();
                    image.data_file = Some((name, raw));
                    data = Some(node);
                }
                Ok(Work::Image { file, data, image })
            }
        }
    }

    fn open_new(&self, door: &Door, job: &str, spec: &NewFileSpec) -> Result<Work, QmpError> {
        let file = NewFile::open(door, &spec.filename, &format!("job '{job}'"));
        let file = file.map_err(|error| QmpError::from_error(&error))?;
        let unused = self.graph.check_unused(&file, &spec.filename);
        unused.map_err(|error| refused(&error))?;
        Ok(Work::File(file, spec.size, spec.preallocation))
    }

    /// Gives a node to the job alone, until its end.
    fn lend(
        &mut self,
        door: &Door,
        job: &str,
        child: ChildSpec,
        end: &mut CreateEnd,
    ) -> Result<NodeRef, QmpError> {
        let node = match child {
            ChildSpec::Named(name) => {
                let missing = block::BlockError::NoSuchChild { name: name.clone() };
                let view = self.graph.node(&name).map_err(|_| refused(&missing))?;
                view.node().clone()
            }
            ChildSpec::Inline(spec) => {
                self.lend_thread(&spec)?;
                let node = self.graph.add_overlay(door, *spec);
                node.map_err(|error| refused(&error))?
            }
        };
        let permitted = self.graph.check_permitted(node.name(), ALONE.uses);
        match permitted.and_then(|()| self.graph.attach(node.name(), job, ALONE)) {
            Ok(_) => end.nodes.push(node.name().to_owned()),
            Err(error) => {
                self.graph.abandon(node.name());
                return Err(refused(&error));
            }
        }
        Ok(node)
    }

    /// Gives back what the job had.
    pub(super) fn end_create(&mut self, job: &str, end: &mut CreateEnd) {
        for node in std::mem::take(&mut end.nodes) {
            self.graph.detach(&node, job);
        }
    }
}

async fn make(cx: JobCx, work: Result<Work, QmpError>) -> Result<(), JobFailure> {
    cx.control().set_total(1);
    let work = work.map_err(|error| JobFailure::Unable(error.desc))?;
    cx.point().await?;
    match work {
        Work::File(file, size, with) => file.make(cx.io(), size, with).await?,
        Work::Image { file, data, image } => create(cx.io(), &file, data.as_ref(), &image)
            .await
            .map_err(told)?,
    }
    cx.advance(1);
    Ok(())
}

fn told(error: ImageError) -> JobFailure {
    JobFailure::Unable(QmpError::from_error(&error).desc)
}
