"""The reader of HLO: against numpy, XLA's own counts, and what XLA wrote for a TPU and a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from launch.compile import hlo, kernels

# From programs for a TPU v5e and for an H100, shortened.
TPU = """\
HloModule jit__fun, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias), {2}: (1, {}, \
may-alias) }, entry_computation_layout={(f32[16]{0})->f32[16]{0}}

%fused_computation.3 (param_0: f32[8,64,64,128], param_1: f32[4,4,128,64]) -> f32[8,128,128,64] {
  %param_0 = f32[8,64,64,128]{3,2,1,0:T(8,128)} parameter(0)
  %param_1 = f32[4,4,128,64]{3,2,1,0:T(8,128)} parameter(1)
  %pad_add_fusion.3 = f32[4,4,128,64]{3,2,1,0:T(8,128)} negate(%param_1)
  ROOT %conv_general_dilated.239 = f32[8,128,128,64]{3,0,2,1:T(8,128)} convolution(%param_0, \
%pad_add_fusion.3), window={size=4x4 pad=2_2x2_2 lhs_dilate=2x2}, dim_labels=b01f_01io->b01f, \
metadata={op_name="jit(_fun)/while/body/closed_call/jvp(Generator)/block5/conv1/\
conv_general_dilated" stack_frame_id=801}
}

ENTRY %main.525 (flat_args_0_: f32[8,64,64,128]) -> f32[8,128,128,64] {
  %flat_args_0_ = f32[8,64,64,128]{3,2,1,0:T(8,128)} parameter(0)
  %flat_args_1_ = f32[4,4,128,64]{3,2,1,0:T(8,128)} parameter(1)
  %copy-start = (f32[4,4,128,64]{3,2,1,0:T(8,128)S(1)}, f32[4,4,128,64]{3,2,1,0:T(8,128)}, \
u32[]{:S(2)}) copy-start(%flat_args_1_)
  %copy-done = f32[4,4,128,64]{3,2,1,0:T(8,128)S(1)} copy-done(%copy-start)
  ROOT %fusion.1 = f32[8,128,128,64]{3,0,2,1:T(8,128)} fusion(%flat_args_0_, %copy-done), \
kind=kOutput, calls=%fused_computation.3, metadata={op_name="jit(_fun)/add" stack_frame_id=1}, \
backend_config={"flag_configs":[],"window_config":{"output_window_bounds":["1","1"],\
"estimated_cycles":"9737350","iteration_bounds":["1"]}}
}
"""

GPU = """\
HloModule jit__fun, is_scheduled=true

%sum (p: f32[], q: f32[]) -> f32[] {
  %p = f32[] parameter(0)
  %q = f32[] parameter(1)
  ROOT %r = f32[] add(%p, %q)
}

ENTRY %main (x: bf16[64,128,128,64], w: bf16[32,4,4,64], dy: bf16[64,64,64,32]) -> bf16[2] {
  %x = bf16[64,128,128,64]{3,2,1,0} parameter(0)
  %w = bf16[32,4,4,64]{3,2,1,0} parameter(1)
  %dy = bf16[64,64,64,32]{3,2,1,0} parameter(2)
  %forward = (bf16[64,64,64,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), \
window={size=4x4 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward", backend_config={"operation_queue_id":"0"}
  %input = (bf16[64,128,128,64]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %w), \
window={size=4x4 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardInput", backend_config={"operation_queue_id":"0"}
  %filter = (bf16[32,4,4,64]{3,2,1,0}, u8[0]{0}) custom-call(%x, %dy), \
window={size=4x4 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convBackwardFilter", backend_config={"operation_queue_id":"0"}
  %zero = bf16[] constant(0)
  %zeros = bf16[64,259,259,64]{3,2,1,0} pad(%x, %zero), padding=0_0x2_2_1x2_2_1x0_0
  %border = bf16[64,130,130,64]{3,2,1,0} pad(%x, %zero), padding=0_0x1_1x1_1x0_0
  %gemm = (bf16[64,8]{1,0}, s8[0]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]}}}
  %a = bf16[64,128]{1,0} parameter(3)
  %b = bf16[128,8]{1,0} parameter(4)
  %all-reduce-start = (f32[1024]{0}, f32[3,3]{1,0}) all-reduce-start(%c, %d), \
replica_groups={{0,1}}, to_apply=%sum
  %c = f32[1024]{0} parameter(5)
  %d = f32[3,3]{1,0} parameter(6)
  %all-reduce-done = (f32[1024]{0}, f32[3,3]{1,0}) all-reduce-done(%all-reduce-start)
  ROOT %callback = bf16[2]{0} custom-call(%x), custom_call_target="xla_ffi_python_gpu_callback"
}
"""


def named(found):
    return {kernel.name: kernel for kernel in found}


def test_a_convolution_inside_a_fusion_of_a_tpu():
    """Each output meets four of the sixteen taps, because the others meet inserted zeros."""
    found, (convolution,) = kernels.find_kernels(hlo.parse(TPU))
    kernel = named(found)['fusion.1']
    assert convolution.flop == kernel.flop == 2 * 8 * 128 * 128 * 64 * 4 * 128
    assert convolution.window == 'size=4x4 pad=2_2x2_2 lhs_dilate=2x2'
    assert kernel.cycles == 9_737_350
    assert kernel.source == convolution.source
    assert 'block5/conv1' in kernel.source
    # The kernel was copied to memory on the chip beforehand.
    assert kernel.bytes == 4 * (8 * 64 * 64 * 128 + 8 * 128 * 128 * 64)
    assert named(found).keys() == {'copy-start', 'fusion.1'}
    assert named(found)['copy-start'].bytes == 4 * 4 * 4 * 128 * 64


def test_donated_outputs():
    assert hlo.aliased_outputs(hlo.parse(TPU)) == {0, 2}
    assert hlo.aliased_outputs(hlo.parse(GPU)) == set()


def test_the_three_directions_of_cudnn_cost_the_same():
    _, convolutions = kernels.find_kernels(hlo.parse(GPU))
    assert [c.kind for c in convolutions] == [
        'convForward',
        'convBackwardInput',
        'convBackwardFilter',
    ]
    assert {c.flop for c in convolutions} == {2 * 64 * 64 * 64 * 32 * 16 * 64}


def test_products_and_collectives_of_a_gpu():
    found = named(kernels.find_kernels(hlo.parse(GPU))[0])
    assert found['gemm'].flop == 2 * 64 * 128 * 8
    assert found['gemm'].bytes == 2 * (64 * 128 + 128 * 8 + 64 * 8)
    assert found['all-reduce-start'].collective == 4 * (1024 + 9)
    assert 'all-reduce-done' not in found
    assert sum(kernel.collective for kernel in found.values()) == 4 * (1024 + 9)


def test_what_should_not_be_there():
    module = hlo.parse(GPU)
    (zeros,) = kernels.written_zeros(module)
    assert zeros.startswith('bf16[64,259,259,64] 0_0x2_2_1x2_2_1x0_0')
    assert kernels.host_calls(module) == ['callback']
    assert not kernels.uses_float64(module)
    assert kernels.uses_float64(hlo.parse(GPU.replace('%c = f32', '%c = f64')))
    assert kernels.host_calls(hlo.parse(TPU)) == kernels.written_zeros(hlo.parse(TPU)) == []


def test_other_text_is_refused():
    with pytest.raises(ValueError, match='no HLO module'):
        hlo.parse('module @jit_step {\n}\n')


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_products_that_meet_no_inserted_zero(data):
    """Counted by a convolution of ones: on the image and its border 1, on inserted zeros 0."""
    draw = data.draw
    size, inner = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    stride, hole, spread = (draw(st.integers(1, 3)) for _ in range(3))
    low, high = draw(st.integers(0, 5)), draw(st.integers(0, 5))
    filled = hole * (inner - 1) + 1
    reach = spread * (size - 1) + 1
    outputs = (low + filled + high - reach) // stride + 1
    if outputs < 1:
        return
    ones = np.zeros(low + filled + high, int)
    ones[low % hole :: hole] = 1  # the border continues the grid of the image
    windows = np.lib.stride_tricks.sliding_window_view(ones, reach)[::stride, ::spread]
    line = (
        f'  %c = f32[5,{outputs},7]{{2,1,0}} convolution(%x, %k), window={{size={size} '
        f'stride={stride} pad={low}_{high} lhs_dilate={hole} rhs_dilate={spread}}}, '
        'dim_labels=b0f_0io->b0f'
    )
    x, kernel = f'f32[5,{inner},3]{{2,1,0}}', f'f32[{size},3,7]{{2,1,0}}'
    module = hlo.parse(
        f'HloModule m\n\nENTRY %main () -> f32[] {{\n  %x = {x} parameter(0)\n'
        f'  %k = {kernel} parameter(1)\n{line}\n}}\n'
    )
    (kernel,), _ = kernels.find_kernels(module)
    assert len(windows) == outputs
    assert kernel.flop == 2 * 5 * 7 * 3 * windows.sum()


# ---- Programs that XLA compiles for a CPU. -----------------------------------------------------


def compiled(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = jax.jit(function).lower(*arrays).compile()
    return hlo.parse(program.as_text()), program.cost_analysis()['flops']


def convolve(x, kernel, **options):
    labels = ('NHWC', 'HWIO', 'NHWC')
    return lax.conv_general_dilated(x, kernel, dimension_numbers=labels, **options)


@pytest.mark.parametrize(
    ('options', 'flop'),
    [
        ({'window_strides': (1, 1), 'padding': 'VALID'}, 2 * 2 * 8 * 8 * 5 * 9 * 4),
        ({'window_strides': (2, 2), 'padding': 'VALID'}, 2 * 2 * 4 * 4 * 5 * 9 * 4),
    ],
)
def test_a_compiled_convolution(options, flop):
    """XLA itself counts the same where nothing is padded."""
    module, counted = compiled(
        lambda x, kernel: convolve(x, kernel, **options), (2, 10, 10, 4), (3, 3, 4, 5)
    )
    found, _ = kernels.find_kernels(module)
    assert sum(kernel.flop * kernel.times for kernel in found) == flop == counted


def test_a_loop_counts_as_often_as_it_runs():
    def power(x):
        return lax.fori_loop(0, 7, lambda _, y: y @ x, x)

    module, _ = compiled(power, (16, 16))
    found, _ = kernels.find_kernels(module)
    assert sum(kernel.flop * kernel.times for kernel in found) == 7 * 2 * 16**3


def test_what_devices_send_to_each_other():
    devices = jax.devices()[:4]

    def mean(tree):
        return lax.pmean(tree, 'batch')

    tree = {'a': jnp.zeros((4, 3, 5)), 'b': jnp.zeros((4, 100))}
    program = jax.pmap(mean, 'batch', devices=devices).lower(tree).compile()
    found, _ = kernels.find_kernels(hlo.parse(program.as_text()))
    assert sum(kernel.collective * kernel.times for kernel in found) == 4 * (15 + 100)


def test_donation_of_a_compiled_program():
    donated = jax.jit(lambda x, y: (y.sum(), x + 1, x[:2]), donate_argnums=0)
    shapes = jax.ShapeDtypeStruct((8,), jnp.float32), jax.ShapeDtypeStruct((9,), jnp.float32)
    module = hlo.parse(donated.lower(*shapes).compile().as_text())
    assert hlo.aliased_outputs(module) == {1}
