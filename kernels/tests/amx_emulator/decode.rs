//! The bytes of the tile instructions: VEX.128 in the 0F 38 map with opcode 49, 4B or 5E.

use nix::libc;

/// A decoded instruction and its length.
#[derive(Debug)]
pub(crate) struct Instruction {
    pub(crate) operation: Operation,
    pub(crate) bytes: usize,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Operation {
    /// LDTILECFG from this address.
    Configure(usize),
    /// TILERELEASE.
    Release,
    /// TILEZERO.
    Zero(usize),
    /// TILELOADD and TILELOADDT1.
    Load(usize, Memory),
    /// TILESTORED.
    Store(usize, Memory),
    /// TDPBSSD, TDPBSUD, TDPBUSD and TDPBUUD: whether the bytes of a and of b are signed.
    Multiply { sums: usize, a: usize, b: usize, signed: (bool, bool) },
}

/// Rows of memory; a stride comes from an index register.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    start: usize,
    pub(crate) stride: Option<usize>,
}

impl Memory {
    /// Where a row begins.
    pub(crate) fn row(self, row: usize) -> usize {
        self.start.wrapping_add(row.wrapping_mul(self.stride.unwrap_or(0)))
    }
}

/// General registers by their number in an instruction, as indices of the signal context.
const REGISTERS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The fields of the VEX prefix (its inverted bits put right) and of the ModRM byte.
struct Fields {
    /// What the extension bits add to the numbers of `reg`, index and base.
    extend: [usize; 3],
    /// The second source.
    vvvv: usize,
    /// 0: none, 1: 66, 2: F3, 3: F2.
    prefix: u8,
    opcode: u8,
    mode: u8,
    reg: usize,
    rm: usize,
}

/// Decodes the instruction whose `i`-th byte is `byte(i)`; `register` reads a register of the signal context.
/// `None` for anything that is not a valid tile instruction.
pub(crate) fn decode(byte: impl Fn(usize) -> u8, register: impl Fn(i32) -> usize) -> Option<Instruction> {
    if byte(0) != 0xc4 {
        return None;
    }
    let (second, third, opcode, modrm) = (byte(1), byte(2), byte(3), byte(4));
    let extension = |bit: u8| if second >> bit & 1 == 0 { 8 } else { 0 };
    // Map 0F 38, W0, 128 bits.
    if second & 0x1f != 2 || third & 0x84 != 0 {
        return None;
    }
    let fields = Fields {
        extend: [extension(7), extension(6), extension(5)],
        vvvv: usize::from(!third >> 3 & 0x0f),
        prefix: third & 3,
        opcode,
        mode: modrm >> 6,
        reg: usize::from(modrm >> 3 & 7),
        rm: usize::from(modrm & 7),
    };
    // There are eight tiles.
    if fields.extend[0] != 0 {
        return None;
    }
    if fields.mode == 3 {
        return Some(Instruction { operation: of_registers(&fields)?, bytes: 5 });
    }
    let (memory, bytes) = address(&fields, byte, register);
    Some(Instruction { operation: of_memory(&fields, memory)?, bytes })
}

fn of_registers(fields: &Fields) -> Option<Operation> {
    let Fields { vvvv, prefix, opcode, reg, rm, extend, .. } = *fields;
    match (opcode, prefix) {
        (0x49, 0) if vvvv == 0 && reg == 0 && rm == 0 => Some(Operation::Release),
        (0x49, 3) if vvvv == 0 && rm == 0 => Some(Operation::Zero(reg)),
        (0x5e, _) if vvvv < 8 && extend[2] == 0 => {
            let signed = match prefix {
                3 => (true, true),
                2 => (true, false),
                1 => (false, true),
                _ => (false, false),
            };
            Some(Operation::Multiply { sums: reg, a: rm, b: vvvv, signed })
        }
        _ => None,
    }
}

fn of_memory(fields: &Fields, memory: Memory) -> Option<Operation> {
    match (fields.opcode, fields.prefix) {
        _ if fields.vvvv != 0 => None,
        (0x49, 0) if fields.reg == 0 => Some(Operation::Configure(memory.start)),
        (0x4b, 1 | 3) if fields.rm == 4 => Some(Operation::Load(fields.reg, memory)),
        (0x4b, 2) if fields.rm == 4 => Some(Operation::Store(fields.reg, memory)),
        _ => None,
    }
}

/// The memory operand and the length of the whole instruction. For LDTILECFG the index is part of the start.
fn address(fields: &Fields, byte: impl Fn(usize) -> u8, register: impl Fn(i32) -> usize) -> (Memory, usize) {
    let [_, index_extension, base_extension] = fields.extend;
    let displacement32 = |at: usize| {
        i32::from_le_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]) as isize as usize
    };
    if fields.mode == 0 && fields.rm == 5 {
        // Relative to the next instruction.
        let start = register(libc::REG_RIP).wrapping_add(9).wrapping_add(displacement32(5));
        return (Memory { start, stride: None }, 9);
    }
    let (mut start, mut stride, mut at) = (0, None, 5);
    let mut base = fields.rm;
    if fields.rm == 4 {
        let sib = byte(5);
        at = 6;
        base = usize::from(sib & 7);
        let index = usize::from(sib >> 3 & 7) + index_extension;
        if index != 4 {
            stride = Some(register(REGISTERS[index]) << (sib >> 6));
        }
    }
    if fields.rm == 4 && base == 5 && fields.mode == 0 {
        start = displacement32(at);
        at += 4;
    } else {
        start = register(REGISTERS[base + base_extension]).wrapping_add(start);
    }
    match fields.mode {
        1 => {
            start = start.wrapping_add(byte(at) as i8 as isize as usize);
            at += 1;
        }
        2 => {
            start = start.wrapping_add(displacement32(at));
            at += 4;
        }
        _ => {}
    }
    if fields.opcode == 0x49 {
        start = start.wrapping_add(stride.take().unwrap_or(0));
    }
    (Memory { start, stride }, at)
}
