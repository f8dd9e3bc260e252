//! Runs one op on a device, with everything around its operands watched.

use crate::backend::{Backend, Slice};
use crate::dtype::{ALIGN, Ty, align};
use crate::error::{Error, Result};
use crate::ops::{Attr, OpDef, widen};
use crate::plan::{Operands, lower};

/// A NaN as f32, and out of range as an index: what a kernel reads where it should not, shows.
const GUARD: u32 = 0x7fc0_dead;
/// What outputs and scratch memory hold before: an element that was not written, or was read before, shows.
pub const POISON: u32 = 0x7fc0_beef;

/// An op to run on operands of its own.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// The op's row.
    pub op: &'static OpDef,
    /// Its attributes.
    pub attr: &'a Attr,
    /// Types and stored bytes.
    pub ins: Vec<(Ty, &'a [u8])>,
    /// Pairs (input, output) in the same place.
    pub shared: &'a [(usize, usize)],
}

struct Room {
    slice: Slice,
    /// What was there before, if nothing may write it.
    fixed: Option<Vec<u8>>,
}

impl Run<'_> {
    /// The outputs' bytes, those of their elements. The error is what the device refused, or that the kernel wrote where it
    /// must not.
    pub fn on(&self, device: &mut dyn Backend) -> Result<Vec<Vec<u8>>, String> {
        let in_tys: Vec<Ty> = self.ins.iter().map(|(ty, _)| ty.clone()).collect();
        let out_tys = self.op.types(self.attr, &in_tys).map_err(|e| format!("infer: {e}"))?;
        for (i, (ty, bytes)) in self.ins.iter().enumerate() {
            if bytes.len() != ty.bytes() {
                return Err(format!("input {i} is {ty} and has {} bytes, expected {}", bytes.len(), ty.bytes()));
            }
        }
        let size = |tys: &[Ty], n: usize| tys.get(n).map(Ty::bytes);
        let fits = |&(i, o): &(usize, usize)| i < in_tys.len() && size(&in_tys, i) == size(&out_tys, o);
        if let Some((i, o)) = self.shared.iter().find(|pair| !fits(pair)) {
            return Err(format!("input {i} and output {o} cannot share a place: they are not of one size"));
        }
        let work = widen::scratch(self.op, self.attr, &in_tys, device.caps());

        // Every room is followed by a guard, the first also preceded by one.
        let words = |w: u32, bytes: usize| w.to_le_bytes().into_iter().cycle().take(bytes).collect::<Vec<u8>>();
        let mut image = words(GUARD, ALIGN);
        let mut place = |content: &[u8]| {
            let offset = image.len();
            image.extend_from_slice(content);
            // Guard words begin right after the last byte.
            let end = align(image.len() + 4);
            let tail = words(GUARD, end - image.len());
            image.extend(tail);
            (offset as u64, content.len() as u64)
        };
        let mut rooms: Vec<(u64, u64, Option<Vec<u8>>)> = Vec::new();
        for (i, (_, bytes)) in self.ins.iter().enumerate() {
            let (offset, n) = place(bytes);
            let overwritten = self.shared.iter().any(|&(input, _)| input == i);
            rooms.push((offset, n, (!overwritten).then(|| bytes.to_vec())));
        }
        for (o, ty) in out_tys.iter().enumerate() {
            match self.shared.iter().find(|&&(_, output)| output == o) {
                Some(&(i, _)) => {
                    let (offset, n, _) = rooms[i];
                    rooms.push((offset, n, None));
                }
                None => {
                    let (offset, n) = place(&words(POISON, ty.bytes()));
                    rooms.push((offset, n, None));
                }
            }
        }
        if work > 0 {
            let (offset, n) = place(&words(POISON, work as usize));
            rooms.push((offset, n, None));
        }

        let fail = |e: Error| e.to_string();
        let buffer = device.alloc(image.len() as u64).map_err(fail)?;
        let rooms: Vec<Room> = rooms
            .into_iter()
            .map(|(offset, bytes, fixed)| Room { slice: Slice { buffer, offset, bytes }, fixed })
            .collect();
        let whole = Slice { buffer, offset: 0, bytes: image.len() as u64 };
        let result = self.launch(device, whole, &image, &rooms, &in_tys, &out_tys).map_err(fail);
        device.free(buffer);
        let after = result?;

        for (i, room) in rooms.iter().enumerate() {
            if let Some(before) = &room.fixed
                && content(&after, room.slice) != before.as_slice()
            {
                return Err(format!("input {i} was written"));
            }
        }
        let mut outside = vec![true; after.len()];
        for room in &rooms {
            outside[room.slice.offset as usize..][..room.slice.bytes as usize].fill(false);
        }
        if let Some(at) = (0..after.len()).find(|&b| outside[b] && after[b] != image[b]) {
            let room =
                rooms.iter().rposition(|r| r.slice.offset as usize <= at).map_or("the first".into(), |r| r.to_string());
            return Err(format!("a byte outside of all operands was written, after operand {room}"));
        }
        // After an odd number of 16-bit elements is half a word that means nothing.
        let elements = |ty: &Ty| if ty.dtype.is_float() { ty.len() * ty.dtype.bytes(2) / 2 } else { ty.bytes() };
        let outs = out_tys.iter().zip(&rooms[self.ins.len()..]);
        Ok(outs.map(|(ty, room)| content(&after, room.slice)[..elements(ty)].to_vec()).collect())
    }

    fn launch(
        &self,
        device: &mut dyn Backend,
        whole: Slice,
        image: &[u8],
        rooms: &[Room],
        in_tys: &[Ty],
        out_tys: &[Ty],
    ) -> Result<Vec<u8>> {
        device.upload(whole, image)?;
        let (ins, rest) = rooms.split_at(in_tys.len());
        let (outs, work) = rest.split_at(out_tys.len());
        let at = Operands {
            outs: outs.iter().map(|r| r.slice).collect(),
            ins: ins.iter().map(|r| r.slice).collect(),
            work: work.first().map(|r| r.slice),
        };
        let launches = lower(self.op, "bench", self.attr, in_tys, out_tys, &at, device.caps())?;
        let recording = device.record(&launches)?;
        let ran = device.replay(recording).and_then(|()| device.sync());
        device.forget(recording);
        ran?;
        let mut after = vec![0; image.len()];
        device.download(whole, &mut after)?;
        Ok(after)
    }
}

fn content(image: &[u8], slice: Slice) -> &[u8] {
    &image[slice.offset as usize..][..slice.bytes as usize]
}
