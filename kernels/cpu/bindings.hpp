// What is bound in files of its own.
#pragma once

#include <nanobind/nanobind.h>

void define_registration(nanobind::module_& m);
void define_training(nanobind::module_& m);
