//! AMX for processors without it: a handler of SIGILL that carries the tile instructions out.
//!
//! [`install`] catches the invalid-opcode trap of each tile instruction, decodes it from the bytes at the
//! instruction pointer, executes it on this thread's emulated tiles and steps over it. Written from the manual
//! (Intel SDM, volume 2, and the AMX chapter of volume 1), knowing nothing of the kernels. What always holds: what
//! the manual answers with #UD or #GP, and any sum that leaves 32 bits, ends the process with a message.
//!
//! The handler runs on the trapping thread inside the instruction; it allocates nothing and takes no lock.

use nix::libc::{self, c_int, c_void, siginfo_t, ucontext_t};
use std::cell::UnsafeCell;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

mod decode;
use decode::{Instruction, Memory, Operation};

/// Threads whose tiles are configured.
static CONFIGURED: AtomicUsize = AtomicUsize::new(0);

/// A tile register: 16 rows of 64 bytes.
type Tile = [[u8; 64]; 16];

struct State {
    configured: bool,
    rows: [usize; 8],
    row_bytes: [usize; 8],
    tiles: [Tile; 8],
    /// Tile products carried out.
    products: usize,
}

impl State {
    const fn unconfigured(products: usize) -> State {
        State { configured: false, rows: [0; 8], row_bytes: [0; 8], tiles: [[[0; 64]; 16]; 8], products }
    }
}

thread_local! {
    static STATE: UnsafeCell<State> = const { UnsafeCell::new(State::unconfigured(0)) };
}

/// Emulates tile instructions in this process from now on.
pub(crate) fn install() {
    // SAFETY: all zero bytes are a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_invalid_opcode as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: a handler of the signature that SA_SIGINFO asks for; the old one is not wanted.
    let result = unsafe { libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Threads whose tiles are configured at the moment.
pub(crate) fn configured_threads() -> usize {
    CONFIGURED.load(Ordering::SeqCst)
}

/// Tile products that this thread carried out so far.
pub(crate) fn products_of_this_thread() -> usize {
    // SAFETY: a copy of one integer; the handler does not run inside of it, since it is no tile instruction.
    STATE.with(|state| unsafe { (*state.get()).products })
}

/// Ends the process; `unwind` must not leave a signal handler.
fn fault(what: &str, instruction: &dyn std::fmt::Debug) -> ! {
    let mut message = [0u8; 512];
    let mut rest = &mut message[..];
    let _ = writeln!(rest, "amx emulator: {what}: {instruction:x?}");
    let len = 512 - rest.len();
    // SAFETY: `len` bytes of `message`.
    unsafe { libc::write(2, message.as_ptr().cast(), len) };
    std::process::abort();
}

extern "C" fn on_invalid_opcode(_signal: c_int, _info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the third argument is the interrupted thread's context, which is ours alone.
    let context = unsafe { &mut *context.cast::<ucontext_t>() };
    let registers = &mut context.uc_mcontext.gregs;
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the processor just read the instruction there; each byte is read only where the ones before it
    // say that the instruction goes on.
    let byte = |i: usize| unsafe { at.add(i).read() };
    let Some(instruction) = decode::decode(byte, |register| registers[register as usize] as usize) else {
        fault("not a tile instruction", &[byte(0), byte(1), byte(2), byte(3), byte(4)]);
    };
    STATE.with(|state| {
        // SAFETY: only this handler looks at its thread's state, and it does not interrupt itself.
        execute(unsafe { &mut *state.get() }, &instruction);
    });
    registers[libc::REG_RIP as usize] += instruction.bytes as i64;
}

/// Fails unless `condition`, as the processor does with #UD or #GP.
fn demand(condition: bool, what: &str, instruction: &Instruction) {
    if !condition {
        fault(what, instruction);
    }
}

fn execute(state: &mut State, instruction: &Instruction) {
    match instruction.operation {
        Operation::Configure(at) => configure(state, at, instruction),
        Operation::Release => set_configured(state, false),
        _ => demand(state.configured, "tiles are not configured", instruction),
    }
    match instruction.operation {
        Operation::Configure(_) | Operation::Release => {}
        Operation::Zero(tile) => {
            demand(state.rows[tile] > 0, "an invalid tile", instruction);
            state.tiles[tile] = [[0; 64]; 16];
        }
        Operation::Load(tile, memory) => {
            check_memory(state, tile, memory, instruction);
            let mut loaded = [[0; 64]; 16];
            for (row, bytes) in loaded.iter_mut().take(state.rows[tile]).enumerate() {
                let from = memory.row(row) as *const u8;
                // SAFETY: as safe as the instruction itself: it reads these bytes.
                unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), state.row_bytes[tile]) };
            }
            state.tiles[tile] = loaded;
        }
        Operation::Store(tile, memory) => {
            check_memory(state, tile, memory, instruction);
            for (row, bytes) in state.tiles[tile].iter().take(state.rows[tile]).enumerate() {
                let to = memory.row(row) as *mut u8;
                // SAFETY: as safe as the instruction itself: it writes these bytes.
                unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), state.row_bytes[tile]) };
            }
        }
        Operation::Multiply { sums, a, b, signed } => {
            check_shapes(state, (sums, a, b), instruction);
            multiply(state, (sums, a, b), signed, instruction);
            state.products += 1;
        }
    }
}

fn set_configured(state: &mut State, configured: bool) {
    match (state.configured, configured) {
        (false, true) => CONFIGURED.fetch_add(1, Ordering::SeqCst),
        (true, false) => CONFIGURED.fetch_sub(1, Ordering::SeqCst),
        _ => 0,
    };
    *state = State { configured, ..State::unconfigured(state.products) };
}

/// LDTILECFG, with its checks for palette 1. Palette 0 releases.
fn configure(state: &mut State, at: usize, instruction: &Instruction) {
    // SAFETY: as safe as the instruction itself: it reads these 64 bytes.
    let bytes = unsafe { (at as *const [u8; 64]).read_unaligned() };
    set_configured(state, bytes[0] != 0);
    if bytes[0] == 0 {
        return;
    }
    demand(bytes[0] == 1, "an unknown palette", instruction);
    let reserved = bytes[2..16].iter().chain(&bytes[32..48]).chain(&bytes[56..]);
    demand(reserved.copied().all(|byte| byte == 0), "reserved bits are set", instruction);
    demand(bytes[1] == 0, "a start row in a fresh configuration", instruction);
    for tile in 0..8 {
        let row_bytes = usize::from(u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]));
        let rows = usize::from(bytes[48 + tile]);
        demand(row_bytes <= 64 && rows <= 16, "a tile is too large", instruction);
        demand((row_bytes == 0) == (rows == 0), "a half empty tile", instruction);
        (state.rows[tile], state.row_bytes[tile]) = (rows, row_bytes);
    }
}

fn check_memory(state: &State, tile: usize, memory: Memory, instruction: &Instruction) {
    demand(state.rows[tile] > 0 && state.row_bytes[tile].is_multiple_of(4), "an invalid tile", instruction);
    demand(memory.stride.is_some(), "no index register", instruction);
}

fn check_shapes(state: &State, (sums, a, b): (usize, usize, usize), instruction: &Instruction) {
    demand(sums != a && sums != b && a != b, "one tile twice", instruction);
    for tile in [sums, a, b] {
        let valid = state.rows[tile] > 0 && state.row_bytes[tile].is_multiple_of(4);
        demand(valid, "an invalid tile", instruction);
    }
    demand(state.rows[sums] == state.rows[a], "other rows in sums and a", instruction);
    demand(state.row_bytes[sums] == state.row_bytes[b], "other columns in sums and b", instruction);
    demand(state.row_bytes[a] / 4 == state.rows[b], "columns of a are not rows of b", instruction);
}

/// `sums[m][n] += a[m][4k + i] * b[k][4n + i]` over all k and i, each byte signed or not. Wrapping is what the
/// processor does; here it is a failure.
fn multiply(
    state: &mut State,
    (sums, a, b): (usize, usize, usize),
    signed: (bool, bool),
    instruction: &Instruction,
) {
    let value = |byte: u8, signed: bool| if signed { i32::from(byte as i8) } else { i32::from(byte) };
    let widen = |tile: &Tile, signed: bool| tile.map(|row| row.map(|byte| value(byte, signed)));
    let (a_values, b_values) = (widen(&state.tiles[a], signed.0), widen(&state.tiles[b], signed.1));
    let mut out = [[0; 64]; 16];
    for m in 0..state.rows[sums] {
        for n in 0..state.row_bytes[sums] / 4 {
            let sum = &state.tiles[sums][m][4 * n..4 * n + 4];
            let mut total = i64::from(i32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]));
            for (k, b_row) in b_values.iter().enumerate().take(state.rows[b]) {
                for i in 0..4 {
                    total += i64::from(a_values[m][4 * k + i] * b_row[4 * n + i]);
                }
            }
            let Ok(total) = i32::try_from(total) else { fault("a sum leaves 32 bits", instruction) };
            out[m][4 * n..4 * n + 4].copy_from_slice(&total.to_le_bytes());
        }
    }
    state.tiles[sums] = out;
}
