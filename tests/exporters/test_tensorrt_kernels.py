"""What names of kernels tell, against names that inspectors and profilers printed in public."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace

import pytest

from compress.bench_tensorrt import Session
from exporters.tensorrt._kernels import says, used

YES, NO, UNKNOWN = True, False, None
WARP = "warpsize2x2x1_tensor16x8x16"
NAMES: dict[str, tuple[bool | None, bool | None]] = {  # kernel: (sparse, low-bit), each beside where it was printed
    # github.com/NVIDIA/TensorRT/issues/4397: an encoder in TensorRT 10.10, products by XMMA and what Myelin makes
    f"sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64_stage6_{WARP}": (NO, NO),
    f"sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize32x32x64_stage6_{WARP}": (NO, NO),
    "_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a": (UNKNOWN, UNKNOWN),
    "__myl_AddCastMeanSubMulMeanAddSqrtDivMulCastMulAdd_0xf2543c36ff9f104bbb1655b0183afb47": (UNKNOWN, UNKNOWN),
    # docs.pytorch.org/TensorRT/user_guide/mixed_precision.html: a whole linear, made by Myelin
    "__myl_MulSum_0xfa6c1858aea1b13b03f90165d7149ec6": (UNKNOWN, UNKNOWN),
    # github.com/NVIDIA/TensorRT/issues/4020: INT8 and 2:4
    "sm80_xmma_fprop_avdt_sparse_int8int8_tilesize64x64x64_tapsperload3_threadspercta128_r3s3_u1v1_scalebias_relu":
        (YES, YES),
    # github.com/NVIDIA/TensorRT/issues/3579: INT8
    "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_vect_c_32_tilesize"
    "256x128x64_stage4_warpsize4x2x1_g1_tensor16x8x32_simple_t1r1s1": (NO, YES),
    # github.com/NVIDIA/TensorRT/issues/1179: INT8 of older GPUs
    "volta_int8_i8816cudnn_int8_256x64_ldg16_relu_singleBuffer_medium_nt_v1": (UNKNOWN, YES),
    # github.com/NVIDIA/TensorRT/issues/3583: TF32
    "sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x256x32_stage3_warpsize2x4x1_tensor16x8x8": (NO, NO),
    # github.com/NVIDIA/TransformerEngine/issues/1391: cuBLAS on an H100; FP8 whose results are BF16, and BF16
    "sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x"
    "_cublas": (NO, YES),
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x"
    "_cublas": (NO, NO),
    # github.com/NVIDIA/cutlass/issues/103: 2:4 by CUTLASS, in FP16, INT8 and INT4
    "cutlass_tensorop_h16832spgemm_256x128_64x3_nn_align8": (YES, NO),
    "cutlass_tensorop_i16864spgemm_s8_256x128_128x3_nn_align16": (YES, YES),
    "cutlass_tensorop_i168128spgemm_s4_256x128_256x3_nn_align32": (YES, YES),
    # of profiles in public repositories: cuSPARSELt, FP8 by TensorRT, one row by cuBLAS, older names, newer names
    "sm80_xmma_sparse_gemm_f16f16_f16f32_f32_tt_t_tilesize128x128x64_stage3_warpsize2x2x1_sptensor16x8x32"
    "_execute_kernel_5x_cusparselt": (YES, NO),
    "sm89_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn_n_tilesize64x64x64_stage4_warpsize2x2x1_tensor16x8x32_bias_f32"
    "_execute_kernel_trt": (NO, YES),
    "sm50_xmma_cublas_gemvx_f16f16_f32_f32_tn_n_int32_unit_n_launch_param4x32x32_strided_unit_stride": (NO, NO),
    "trt_ampere_h16816gemm_128x64_ldg8_nn_v1": (NO, NO),
    "cutlass_80_tensorop_f16_s16816gemm_relu_f16_128x256_32x3_nn_align8": (NO, NO),
    "sm80_trt_conv_act_pool_v3_tile_rows_8_tile_cols_120_execute_kernel_trt": (UNKNOWN, UNKNOWN),  # it is of INT8
    "nvjet_sm121_hsh_mma_128x208x64_2_32x104x64_tmaAB_bz_NNNN": (UNKNOWN, UNKNOWN),
    "": (UNKNOWN, UNKNOWN),
}  # fmt: skip
DENSE, SPARSE, CODES, FUSED = (next(n for n in NAMES if part in n) for part in (WARP, "_sparse_g", "e4m3e", "_MulSum"))


@pytest.mark.parametrize("kernel", NAMES)
def test_a_name_is_read_as_far_as_it_tells(kernel: str) -> None:
    assert (says(kernel, "sparse"), says(kernel, "low-bit")) == NAMES[kernel]


@pytest.mark.parametrize("part", ["t1r4s4", "r8s8_u4v4", "n_int32_unit", "16x8x8", "i8816x"])
def test_sizes_of_filters_and_tiles_are_no_codes(part: str) -> None:
    assert says(f"_gemm_{part}_stage8", "low-bit") is UNKNOWN


def layer(name: str, kernel: str, *nodes: str) -> dict[str, str]:
    return {"name": name, "kernel": kernel, "metadata": "".join(f"[ONNX Layer: {n}]" for n in nodes)}


Layers = list[dict[str, str]]
LINEARS: Mapping[str, list[str]] = {n: [f"{n}.MatMul.1", f"{n}.DequantizeLinear.0"] for n in ("h.0.up", "h.0.down")}
UP, DOWN = (nodes[0] for nodes in LINEARS.values())


def told(layers: Layers, use: str = "sparse") -> str:
    (found,) = used(layers, {use: LINEARS, "other": {}})
    return found.replace(f" eligible layers use {use} kernels", "")


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([], "unknown how many of 2"),
        ([layer("any", SPARSE, "another node")], "unknown how many of 2"),
        ([layer("{ForeignNode[h.0.up.MatMul.1...h.0.down.MatMul.1]}", "")], "unknown how many of 2"),
        ([layer("a", FUSED, UP), layer("b", FUSED, DOWN)], "unknown how many of 2"),
        ([layer("a", DENSE, UP), layer("b", FUSED, DOWN)], "0 of 2, unknown of 1"),
        ([layer("a", DENSE, UP), layer("b", SPARSE, DOWN)], "1 of 2"),
        ([layer("a", SPARSE, UP, DOWN)], "2 of 2"),  # one product of both
        ([layer("a", DENSE, f"{UP}\x1e{DOWN}")], "0 of 2"),
        ([layer(f"{UP} + {DOWN}", SPARSE)], "2 of 2"),
        ([layer("h_0_up_MatMul_1+h_0_down_MatMul_1_myl0_9", SPARSE)], "2 of 2"),
        ([layer("a", FUSED, UP), layer("b", DENSE, UP, DOWN)], "0 of 2"),  # the sum beside the product is no product
        ([layer("a", DENSE, UP, DOWN), layer("a [profile 1]", SPARSE, UP)], "1 of 2"),
        ([layer("a", DENSE, UP, DOWN), layer("a [profile 1]", FUSED, UP)], "0 of 2, unknown of 1"),
    ],
)
def test_linears_are_counted_by_what_is_known_of_their_layers(layers: Layers, said: str) -> None:
    assert told(layers) == said


def test_a_product_of_floats_may_read_codes_where_nothing_else_unpacks_them() -> None:
    apart = [layer("unpack", "", LINEARS["h.0.up"][1]), layer("a", DENSE, UP)]
    within = [layer("b", DENSE, DOWN, LINEARS["h.0.down"][1])]
    assert told([*apart, *within], "low-bit") == "0 of 2, unknown of 1"
    assert told([*apart, *within], "sparse") == "0 of 2"
    assert told([*apart, layer("b", CODES, DOWN)], "low-bit") == "1 of 2"


def test_layers_whose_kernel_the_inspector_does_not_tell_are_unknown() -> None:
    some = {"Name": "a", "LayerType": "gemm", "TacticName": DENSE, "Metadata": f"[ONNX Layer: {UP}]"}
    fused = {"Name": "{ForeignNode[x...y]}", "LayerType": "Myelin", "TacticValue": "0x0000000000000000"}
    told = json.dumps({"Layers": ["a name alone, as plans without detail have it", some, fused]})
    inspector = SimpleNamespace(get_engine_information=lambda form: told)
    session = object.__new__(Session)
    session.trt = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON=1))
    session.engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    assert session.kernels() == {"a": DENSE, "{ForeignNode[x...y]}": "unknown"}
    (said,) = used(session.layers(), {"sparse": LINEARS})
    assert said == "0 of 2 eligible layers use sparse kernels, unknown of 1"
