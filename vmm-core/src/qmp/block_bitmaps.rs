//! `block-bitmaps.json`: which parts of nodes were written.

use block::Bitmap;
use qapi_schema::block_bitmaps::{
    BlockDirtyBitmap, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge, BlockDirtyBitmapSha256, Commands,
};
use qapi_schema::block_core::BlockDirtyInfo;
use qapi_schema::{Context, QmpError};
use ring::digest;

use crate::transaction::Action;
use crate::transaction::bitmaps::BitmapAction;
use crate::vm::Vm;

impl Commands for Vm {
    fn block_dirty_bitmap_add(
        &mut self,
        cx: &mut dyn Context,
        args: BlockDirtyBitmapAdd,
    ) -> Result<(), QmpError> {
        self.change_bitmap(cx, BitmapAction::Add(args))
    }

    fn block_dirty_bitmap_remove(
        &mut self,
        cx: &mut dyn Context,
        args: BlockDirtyBitmap,
    ) -> Result<(), QmpError> {
        self.change_bitmap(cx, BitmapAction::Remove(args))
    }

    fn block_dirty_bitmap_clear(
        &mut self,
        cx: &mut dyn Context,
        args: BlockDirtyBitmap,
    ) -> Result<(), QmpError> {
        self.change_bitmap(cx, BitmapAction::Clear(args))
    }

    fn block_dirty_bitmap_enable(
        &mut self,
        cx: &mut dyn Context,
        args: BlockDirtyBitmap,
    ) -> Result<(), QmpError> {
        self.change_bitmap(cx, BitmapAction::Enable(args))
    }

    fn block_dirty_bitmap_disable(
        &mut self,
        cx: &mut dyn Context,
        args: BlockDirtyBitmap,
    ) -> Result<(), QmpError> {
        self.change_bitmap(cx, BitmapAction::Disable(args))
    }

    fn block_dirty_bitmap_merge(
        &mut self,
        cx: &mut dyn Context,
        args: BlockDirtyBitmapMerge,
    ) -> Result<(), QmpError> {
        self.change_bitmap(cx, BitmapAction::Merge(args))
    }

    fn x_debug_block_dirty_bitmap_sha256(
        &mut self,
        _cx: &mut dyn Context,
        args: BlockDirtyBitmap,
    ) -> Result<BlockDirtyBitmapSha256, QmpError> {
        let bitmap = self
            .node_with_bitmaps(&args.node)?
            .bitmaps()
            .find(&args.name);
        let bitmap = bitmap.map_err(|error| QmpError::from_error(&error))?;
        let Some(map) = bitmap.map else {
            let error = block::BitmapError::Inconsistent(args.name);
            return Err(QmpError::from_error(&error));
        };
        let mut digest = digest::Context::new(&digest::SHA256);
        for word in map.words() {
            digest.update(&word.to_le_bytes());
        }
        let hex = |byte: &u8| format!("{byte:02x}");
        let sha256 = digest.finish().as_ref().iter().map(hex).collect();
        Ok(BlockDirtyBitmapSha256 { sha256 })
    }
}

impl Vm {
    /// One change alone is a transaction of one action.
    fn change_bitmap(
        &mut self,
        cx: &mut dyn Context,
        action: BitmapAction,
    ) -> Result<(), QmpError> {
        let door = self.door_of(cx);
        self.transact(&door, vec![Action::Bitmap(action)]).map(drop)
    }
}

/// The bitmaps of a node, as lists show them: the newest first; `None` without any.
pub(super) fn infos(bitmaps: &block::Bitmaps) -> Option<Vec<BlockDirtyInfo>> {
    let list: Vec<_> = bitmaps.list().iter().rev().map(info).collect();
    (!list.is_empty()).then_some(list)
}

fn info(bitmap: &Bitmap) -> BlockDirtyInfo {
    let count = bitmap.map.as_ref().map_or(0, |map| map.count());
    BlockDirtyInfo {
        name: Some(bitmap.name.clone()),
        count: i64::try_from(count).unwrap_or(i64::MAX),
        granularity: u32::try_from(bitmap.granularity).unwrap_or(u32::MAX),
        recording: bitmap.enabled,
        // No job that there is uses a bitmap.
        busy: false,
        persistent: bitmap.persistent,
        inconsistent: bitmap.map.is_none().then_some(true),
    }
}
