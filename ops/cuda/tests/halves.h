// bf16 and f16 by their bits, rounding to nearest even as the hardware does: for the kernels on the CPU, candle's too, and the driver's products.
#pragma once
#include <cstdint>
#include <cstring>

namespace csim {
inline float wide_bf16(uint16_t bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}
inline uint16_t narrow_bf16(float value) {
  uint32_t wide;
  memcpy(&wide, &value, 4);
  return value != value ? 0x7fff : uint16_t((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}
inline float wide_f16(uint16_t bits) {
  _Float16 narrow;
  memcpy(&narrow, &bits, 2);
  return narrow;
}
inline uint16_t narrow_f16(float value) {
  _Float16 narrow = value;
  uint16_t bits;
  memcpy(&bits, &narrow, 2);
  return bits;
}
}  // namespace csim
