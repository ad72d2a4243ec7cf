// What a step of the engine is: the kernel that it runs, as a profile shows it.
#pragma once

namespace hfrt {

// X(enumerator, name in a profile)
#define HFRT_STEP_KINDS(X)                    \
  X(convert, "convert")                       \
  X(winograd, "winograd")                     \
  X(narrow_winograd, "narrow winograd")       \
  X(gather, "gather")                         \
  X(pointwise, "pointwise")                   \
  X(planar, "planar")                         \
  X(planar_ring, "planar (in the next step)") \
  X(depthwise, "depthwise")                   \
  X(transposed, "transposed")                 \
  X(average_pool, "average pool")             \
  X(max_pool, "max pool")                     \
  X(global_average, "global average")         \
  X(global_maximum, "global maximum")         \
  X(global_norm, "global norm")               \
  X(affine, "affine")                         \
  X(add, "add")                               \
  X(subtract, "subtract")                     \
  X(multiply, "multiply")                     \
  X(divide, "divide")                         \
  X(maximum, "maximum")                       \
  X(minimum, "minimum")                       \
  X(concat, "concat")                         \
  X(slice, "slice")                           \
  X(flatten, "flatten")                       \
  X(unflatten, "unflatten")                   \
  X(transpose, "transpose")                   \
  X(remap, "other voxels")                    \
  X(blend, "between voxels")                  \
  X(linear, "linear")                         \
  X(hyper_linear, "hyper linear")             \
  X(one_and, "one and")                       \
  X(combine, "combine")                       \
  X(softmax, "softmax")                       \
  X(reduce, "reduce")                         \
  X(ensemble, "ensemble")                     \
  X(group_norm, "group norm")                 \
  X(channel_norm, "channel norm")

enum class StepKind {
#define HFRT_ENUMERATOR(kind, name) kind,
  HFRT_STEP_KINDS(HFRT_ENUMERATOR)
#undef HFRT_ENUMERATOR
};

inline const char* name_of(StepKind kind) {
  static const char* const names[] = {
#define HFRT_STEP_NAME(kind, name) name,
      HFRT_STEP_KINDS(HFRT_STEP_NAME)
#undef HFRT_STEP_NAME
  };
  return names[static_cast<int>(kind)];
}

}  // namespace hfrt
